"""Static membership in the consumer group (KIP-345): the parts that aiokafka 0.14 lacks.

A worker joins the group with its instance id. If it is killed and restarted within the session timeout, it
takes its old place at once, and no other worker's partitions move. aiokafka joins with that id, but

- its heartbeats do not contain the id. The broker then cannot distinguish a member whose id was taken over
  from one that timed out. The two members would remove each other from the group forever;
- it sends no LeaveGroup, so the partitions of a stopped worker would wait for the session timeout;
- it does not know the error FENCED_INSTANCE_ID.

So the requests of aiokafka's coordinator pass through :class:`StaticMembership`, which also extends the
lease.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.group import HeartbeatRequest
from aiokafka.protocol.types import Array, Int16, Int32, Schema, String

from stoplog.clock import now
from stoplog_worker.lease import Lease

_log = logging.getLogger("stoplog.membership")

_ILLEGAL_GENERATION: Final = 22
_UNKNOWN_MEMBER_ID: Final = 25
_FENCED_INSTANCE_ID: Final = 82
_COORDINATOR_ELSEWHERE: Final = (14, 15, 16)
"""The coordinator is loading the group, is not available, or is another broker."""

_LEAVE_ATTEMPTS: Final = 3
_LEAVE_ATTEMPT_S: Final = 2.0
"""Seconds until the group must have confirmed that a member leaves. A broker handles the requests of one
connection in order: behind a JoinGroup that waits for other members, a LeaveGroup waits, too. So the next
attempt uses a new connection."""

_LEAVE_RETRY_S: Final = 0.1


class _HeartbeatResponse(Response):
    API_KEY = 12
    API_VERSION = 3
    SCHEMA = Schema(("throttle_time_ms", Int32), ("error_code", Int16))


class _HeartbeatStruct(RequestStruct):
    API_KEY = 12
    API_VERSION = 3
    RESPONSE_TYPE = _HeartbeatResponse
    SCHEMA = Schema(
        ("group", String("utf-8")),
        ("generation_id", Int32),
        ("member_id", String("utf-8")),
        ("group_instance_id", String("utf-8")),
    )


class _LeaveResponse(Response):
    API_KEY = 13
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        (
            "members",
            Array(
                ("member_id", String("utf-8")),
                ("group_instance_id", String("utf-8")),
                ("error_code", Int16),
            ),
        ),
    )


class _LeaveStruct(RequestStruct):
    API_KEY = 13
    API_VERSION = 3
    RESPONSE_TYPE = _LeaveResponse
    SCHEMA = Schema(
        ("group", String("utf-8")),
        ("members", Array(("member_id", String("utf-8")), ("group_instance_id", String("utf-8")))),
    )


class _Heartbeat(Request[_HeartbeatStruct]):
    API_KEY = 12

    def __init__(self, *fields: Any) -> None:
        self._fields = fields

    def build(self, request_struct_class: type[_HeartbeatStruct]) -> _HeartbeatStruct:
        return request_struct_class(*self._fields)


class _Leave(Request[_LeaveStruct]):
    API_KEY = 13

    def __init__(self, *fields: Any) -> None:
        self._fields = fields

    def build(self, request_struct_class: type[_LeaveStruct]) -> _LeaveStruct:
        return request_struct_class(*self._fields)


class StaticMembership:
    """One member's requests to the group's coordinator.

    Args:
        coordinator: aiokafka's coordinator, whose requests are intercepted.
        lease: Extended when the group confirms the membership, and ended when the group denies it.
        fenced: Called in the coordinator's thread when another member has taken the instance id.
    """

    def __init__(self, coordinator: Any, lease: Lease, fenced: Callable[[], None]) -> None:
        self._coordinator = coordinator
        self._instance: str = coordinator._group_instance_id
        self._lease = lease
        self._fenced = fenced
        self._send: Callable[[Any], Awaitable[Any]] = coordinator._send_req
        coordinator._send_req = self.send
        coordinator._maybe_leave_group = self.leave

    async def send(self, request: Any) -> Any:
        """Send *request*, and extend or end the lease by its response.

        The response "rebalance in progress" to a heartbeat confirms nothing, although aiokafka counts it as
        success.

        Raises:
            KafkaError: aiokafka's errors; for a fenced member an error that makes aiokafka retry.
        """
        coordinator = self._coordinator
        if isinstance(request, HeartbeatRequest):
            request = _Heartbeat(
                coordinator.group_id, coordinator.generation, coordinator.member_id, self._instance
            )
        sent_at = now()
        response = await self._send(request)
        code = getattr(response, "error_code", 0)
        if code == _FENCED_INSTANCE_ID:
            self._lease.end()
            self._fenced()
            raise KafkaError("fenced")
        if type(response).__name__.lstrip("_").startswith(("HeartbeatResponse", "SyncGroupResponse")):
            if code == 0:
                self._lease.extend(sent_at)
            elif code in (_ILLEGAL_GENERATION, _UNKNOWN_MEMBER_ID):
                self._lease.end()
        return response

    async def leave(self) -> None:
        """Leave the group, so that other workers take over at once."""
        coordinator = self._coordinator
        # Without its own member id, this request would remove the member that has taken the instance id.
        if coordinator.generation > 0 and coordinator.member_id:
            failure = await self._leave_group((coordinator.member_id, self._instance))
            if failure is not None:
                _log.warning(
                    "leaving the group failed (%s): it waits for this worker until the session timeout",
                    failure,
                )
        coordinator.reset_generation()

    async def _leave_group(self, member: tuple[str, str]) -> object:
        """Return why the group has not confirmed that *member* leaves; ``None`` if it has."""
        failure: object = None
        for attempt in range(_LEAVE_ATTEMPTS):
            if attempt:
                await asyncio.sleep(_LEAVE_RETRY_S)
            try:
                async with asyncio.timeout(_LEAVE_ATTEMPT_S):
                    response = await self._send_leave(member)
            except TimeoutError:
                failure = f"no response within {_LEAVE_ATTEMPT_S:g} s"
                self._close_connection()
                continue
            except KafkaError as exc:
                failure = exc
                continue
            codes = [code for code in (response.error_code, *(m[2] for m in response.members)) if code]
            # The response to an earlier attempt may be lost. The group no longer knows the member then.
            if not codes or (attempt and codes == [_UNKNOWN_MEMBER_ID]):
                return None
            failure = f"error {codes[0]}"
            if codes[0] not in _COORDINATOR_ELSEWHERE:
                break
            self._coordinator.coordinator_id = None
        return failure

    async def _send_leave(self, member: tuple[str, str]) -> Any:
        coordinator = self._coordinator
        if coordinator.coordinator_id is None:
            # aiokafka does not look for a coordinator any more once it closes.
            coordinator._coordinator_dead_fut = asyncio.get_running_loop().create_future()
            coordinator.coordinator_id = await coordinator._client.coordinator_lookup(
                CoordinationType.GROUP, coordinator.group_id
            )
        return await self._send(_Leave(coordinator.group_id, [member]))

    def _close_connection(self) -> None:
        coordinator = self._coordinator
        key = (coordinator.coordinator_id, ConnectionGroup.COORDINATION)
        connection = coordinator._client._conns.get(key)
        if connection is not None:
            connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
