"""Who is there, and how the store is."""

from __future__ import annotations

import msgspec

from streams.contract.records import PartitionBeat


class Node(msgspec.Struct, frozen=True):
    """A worker or gateway that was heard of in the last 10 s; ``age_ms``: when last, by our own clock."""

    id: str
    role: str
    version: str
    host: str
    age_ms: int
    partitions: dict[int, PartitionBeat]


class Status(msgspec.Struct, frozen=True):
    """How this gateway and its store are.

    Attributes:
        mode: ``normal`` or ``degraded`` (some partition's checks are let through without an answer).
        since_ms: Since when, ms since the Unix epoch by this gateway's clock.
        why: What made it degraded; ``None`` when normal.
        degraded_partitions: Partitions let through at once.
        let_through: Checks let through since this degraded mode began; 0 when normal.
        uncounted: Checks of those that could not be published; 0 when normal.
        store: ``ok``, or ``connecting``, ``unreachable``, ``topics_missing``, ``under_replicated``,
            ``no_worker``, ``recovering``.
        store_why: What is the matter with the store and what to do; ``None`` when ok.
        partitions: Partitions of ``checks``.
        nodes: Workers and gateways, by role and id.
    """

    mode: str
    since_ms: int
    why: str | None
    degraded_partitions: list[int]
    let_through: int
    uncounted: int
    store: str
    store_why: str | None
    partitions: int
    nodes: list[Node]


class Readiness(msgspec.Struct, frozen=True):
    """Whether checks are answered from the store; ``reason`` says why not."""

    ready: bool
    reason: str | None = None
