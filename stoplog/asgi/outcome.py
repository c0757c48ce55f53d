"""Charge a request by its response: its cost is reserved before, and settled once the response has ended."""

from __future__ import annotations

import asyncio
from asyncio import Task
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, TypeAlias

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from stoplog.client.held import Held
from stoplog.client.reservations import check_used

Charge: TypeAlias = Callable[[int, Headers], int]
"""Returns the units to charge for a response with this status and these header fields: 0 to 1,000,000.

They may be more than the reserved cost. The function must not block.
"""

LogFailure: TypeAlias = Callable[[Exception, str], None]
"""Logs an exception, with the text of what it has caused."""

UPGRADED: Final = 101
"""Status of an accepted WebSocket."""

_SERVER_ERROR: Final = 500


class _Response(NamedTuple):
    status: int
    headers: Headers


class Outcome:
    """What becomes of a request whose cost is reserved.

    ==================================================  =====================================================
    the response                                        the charge
    ==================================================  =====================================================
    has begun, and ended or was cut off by the caller   *charge* of its status and header fields
    failed: the application raised an exception         *charge* of 500 without header fields
    never began: the caller left, or a task was         the reserved cost
    cancelled
    *charge* fails                                      the reserved cost; the failure is logged
    ==================================================  =====================================================

    Args:
        held: The open reservation.
        charge: Returns the units to charge.
        log_failure: Logs failures, which are those of no request.
    """

    def __init__(self, held: Held, charge: Charge, log_failure: LogFailure) -> None:
        self._held = held
        self._charge = charge
        self._log_failure = log_failure
        self._response: _Response | None = None
        self._caller_left = False
        self._settling: Task[None] | None = None

    def respond(self, status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Note the beginning of the response. A later call replaces an earlier one."""
        lower = [(name.lower(), value) for name, value in headers]
        self._response = _Response(status, Headers(raw=lower))

    def cut_off(self) -> None:
        """Note that the server could not send a part of the response, because the caller has left."""
        self._caller_left = True

    def fail(self, error: BaseException) -> None:
        """Note that *error* has ended the request, unless it only means that the caller has left."""
        left = self._caller_left or isinstance(error, ClientDisconnect | WebSocketDisconnect)
        if isinstance(error, Exception) and not left:
            self.respond(_SERVER_ERROR)

    def settle(self) -> Task[None]:
        """Begin to settle, once; return the task, which never fails.

        It is a task of its own, because a server may cancel that of a request whose caller has left.
        """
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle(self._response))
        return self._settling

    async def end(self) -> None:
        """Settle, and wait for it."""
        await asyncio.shield(self.settle())

    async def _settle(self, response: _Response | None) -> None:
        try:
            if response is not None:
                self._held.used = check_used(self._charge(*response), "charge")
        except Exception as exc:  # noqa: BLE001 - the response has ended already
            self._log_failure(exc, "charge failed, so a request was charged its whole cost")
        try:
            await self._held.close(failed=False)
        except Exception as exc:  # noqa: BLE001 - as above
            self._log_failure(exc, "a request was not settled, so its whole cost will be charged")
