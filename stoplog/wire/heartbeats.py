"""``nodes``: heartbeats of workers and gateways, JSON keyed by node id."""

from __future__ import annotations

from typing import Final

import msgspec

from stoplog.errors import UndecodableRecord
from stoplog.wire.format import to_json

HEARTBEAT_S: Final = 2.0
"""Seconds between two heartbeats of a node; a worker also sends one when its partitions have changed."""

RUNNING: Final = "running"
"""State of a partition that the worker judges."""

RESTORING: Final = "restoring"
"""State of a partition that the worker is about to judge."""

STANDBY: Final = "standby"
"""State of a partition of which the worker only keeps a copy."""


class PartitionState(msgspec.Struct, frozen=True):
    """What a worker says of one partition: its state, and records not yet judged."""

    state: str
    lag: int = 0


class Heartbeat(msgspec.Struct, frozen=True):
    """A worker or gateway saying that it is there, and how it is; a worker also in which lane."""

    id: str
    role: str
    version: str
    host: str
    at_ms: int
    partitions: dict[int, PartitionState] = {}
    stopping: bool = False
    lane: str = ""


class StampedHeartbeat(msgspec.Struct, frozen=True):
    """A heartbeat and the broker's timestamp of its record, in ms since the Unix epoch by the broker's clock."""

    heartbeat: Heartbeat
    at_ms: int


_heartbeat = msgspec.json.Decoder(Heartbeat)


def encode_heartbeat(beat: Heartbeat) -> bytes:
    """JSON."""
    return to_json(beat)


def decode_heartbeat(value: bytes | None) -> Heartbeat:
    """Read a beat.

    Raises:
        UndecodableRecord: not one.
    """
    try:
        return _heartbeat.decode(value or b"")
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not a beat: {exc}") from exc
