"""``nodes``: the heartbeats of workers and gateways.

=====  =========================================================================================
part   contents
=====  =========================================================================================
key    the node's id, UTF-8
value  JSON, the fields of :class:`Heartbeat`; readers ignore unknown fields
=====  =========================================================================================

::

    {"id": "worker-1@host", "role": "worker", "version": "0.2.0", "host": "host", "at_ms": 1764457200000,
     "partitions": {"0": {"state": "running", "lag": 3}}, "stopping": false, "lane": "a",
     "relay_keys": ["2026:5f0c2a91"], "holds": [0], "unjudged": [0], "stated_plans": true,
     "growth": {"epoch": 1, "paused": false, "drained": true, "checks": 0}}
"""

from __future__ import annotations

from typing import Final

import msgspec

from stoplog.errors import UndecodableRecord
from stoplog.wire.format import to_json

HEARTBEAT_S: Final = 2.0
"""Seconds between two heartbeats of a node. A worker also sends one when its partitions have changed."""

RUNNING: Final = "running"
"""State of a partition whose checks the worker decides."""

RESTORING: Final = "restoring"
"""State of a partition that the worker owns and still restores."""

STANDBY: Final = "standby"
"""State of a partition of which the worker only keeps a copy, to take it over quickly."""


class PartitionState(msgspec.Struct, frozen=True):
    """A worker's state of one partition.

    Attributes:
        state: ``running``, ``restoring`` or ``standby``.
        lag: Records of ``checks`` that are not decided yet.
    """

    state: str
    lag: int = 0


class GrowthState(msgspec.Struct, frozen=True):
    """What a node does for a step in which the number of partitions grows.

    Attributes:
        epoch: The step (:class:`stoplog.wire.partition_count.GrowthStep`) that the node knows of; 0 for none.
        paused: Whether the node has stopped: a gateway publishes nothing, a worker has no partitions.
        drained: Whether a worker has decided everything in the log.
        checks: Checks, settlements, charges and refunds that a gateway has not published because of this
            step. They are not counted against any client.
    """

    epoch: int = 0
    paused: bool = False
    drained: bool = False
    checks: int = 0


class Heartbeat(msgspec.Struct, frozen=True):
    """A sign of life of a worker or gateway.

    Attributes:
        id: Name of the node, unique among all nodes.
        role: ``worker`` or ``gateway``.
        version: Its version of Stoplog.
        host: Name of its machine.
        at_ms: Milliseconds since the Unix epoch by the node's own clock. Nothing depends on it.
        partitions: A worker's partitions and their states.
        stopping: Whether this is the node's last heartbeat.
        lane: A worker's lane, ``a`` being the default one; empty for a gateway.
        relay_keys: Id and digest of each relay key of a worker; absent if it has none.
        holds: The worker's partitions that grant holds; absent if the worker cannot read holds.
        unjudged: Those in which costs were charged lately that no limit judged, because they became known
            later. A client that was denied may have such costs. Absent if there are none.
        stated_plans: Whether a worker reads the limits that the name of a plan states; absent if it does not.
        growth: What the node does for the last step of growing; absent if it does not know such steps.
        id_form: The normal form in which a gateway or program compares ids
            (:mod:`stoplog.identity.normalization`); absent if it compares them as they are.
    """

    id: str
    role: str
    version: str
    host: str
    at_ms: int
    partitions: dict[int, PartitionState] = {}
    stopping: bool = False
    lane: str = ""
    relay_keys: list[str] | msgspec.UnsetType = msgspec.UNSET
    holds: list[int] | msgspec.UnsetType = msgspec.UNSET
    unjudged: list[int] | msgspec.UnsetType = msgspec.UNSET
    stated_plans: bool | msgspec.UnsetType = msgspec.UNSET
    growth: GrowthState | msgspec.UnsetType = msgspec.UNSET
    id_form: str | msgspec.UnsetType = msgspec.UNSET


class StampedHeartbeat(msgspec.Struct, frozen=True):
    """A heartbeat, and the broker's timestamp of its record (ms since the Unix epoch)."""

    heartbeat: Heartbeat
    at_ms: int


_heartbeat = msgspec.json.Decoder(Heartbeat)


def encode_heartbeat(heartbeat: Heartbeat) -> bytes:
    """Return the value of a record of ``nodes``."""
    return to_json(heartbeat)


def decode_heartbeat(value: bytes | None) -> Heartbeat:
    """Return the heartbeat in a record of ``nodes``.

    Raises:
        UndecodableRecord: The value is no heartbeat.
    """
    try:
        return _heartbeat.decode(value or b"")
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not a heartbeat: {exc}") from exc
