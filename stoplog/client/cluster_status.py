"""The status of the system as one gateway or program sees it: its mode, the store, the nodes.

Several gateway processes may share one port. Each has a status of its own, and :func:`merge_status` makes one
of all. The processes exchange them as files (``stoplog_gateway/server/shared_status.py``).
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from stoplog.client.top_rejected import Summary
from stoplog.client.transport.broker_view import BrokerView
from stoplog.wire.heartbeats import RUNNING, STANDBY, PartitionState
from stoplog.wire.partition_count import GrowthStep, PartitionCount

LATE_S: Final = 5.0
"""Seconds without a heartbeat after which a node is marked as late: two heartbeats are missing."""

CONNECTING: Final = "connecting"
UNREACHABLE: Final = "unreachable"
TOPICS_WRONG: Final = "topics_wrong"
NO_WORKER: Final = "no_worker"
RECOVERING: Final = "recovering"
UNDER_REPLICATED: Final = "under_replicated"
OK: Final = "ok"

STATES: Final = (CONNECTING, UNREACHABLE, TOPICS_WRONG, NO_WORKER, RECOVERING, UNDER_REPLICATED, OK)
"""States of the store, the worst first. If several hold, the status shows the worst."""


class Node(msgspec.Struct, frozen=True):
    """A worker or gateway whose last heartbeat is recent.

    Attributes:
        id: Name of the node.
        role: ``worker`` or ``gateway``.
        version: Its version of Stoplog.
        host: Name of its machine.
        age_ms: Milliseconds since its last heartbeat, by this process's clock.
        partitions: State and lag of each of a worker's partitions.
        lane: A worker's lane; ``a`` is the default one. Empty for a gateway.
    """

    id: str
    role: str
    version: str
    host: str
    age_ms: int
    partitions: dict[int, PartitionState]
    lane: str = ""


class Status(msgspec.Struct, frozen=True):
    """The status of this gateway or program, and of its store.

    Attributes:
        mode: ``normal``, or ``degraded`` while checks of some partition fail open.
        since_ms: Start of the mode, ms since the Unix epoch by this machine's clock.
        why: Cause of degraded mode; ``None`` when normal.
        degraded_partitions: Partitions whose checks fail open at once.
        let_through: Checks that failed open since degraded mode began; 0 when normal.
        uncounted: Checks, failed open or closed, that could not be published; 0 when normal.
        store: One of :data:`STATES`.
        store_why: The problem of the store, and its remedy; ``None`` when ok.
        partitions: Number of partitions of ``checks`` over which clients are hashed.
        nodes: Workers and gateways, sorted by role, lane and id.
        processes: Running gateway processes that share this port (``STOPLOG_PROCESSES``). All other fields
            are about all of them.
        degraded_processes: Those of them that are degraded.
        failed_closed: Checks that failed closed since degraded mode began; 0 when normal.
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
    processes: int = 1
    degraded_processes: int = 0
    failed_closed: int = 0


class Readiness(msgspec.Struct, frozen=True):
    """Whether the store answers checks of at least one partition; if not, ``reason`` states why."""

    ready: bool
    reason: str | None = None


class ProcessState(msgspec.Struct, frozen=True):
    """The state that one of several gateway processes shares with the others.

    Attributes:
        status: Its status, without nodes: every process reads all heartbeats itself.
        rejected: The clients that it rejected most.
    """

    status: Status
    rejected: Summary


def merge_status(own: Status, others: list[Status]) -> Status:
    """Return one status of all processes on a port.

    It is degraded if any process is, since the first one became so. It is normal since the last one became
    so. The store's state is the worst that any process sees. Counts are sums. The nodes are those of *own*.
    """
    every = [own, *others]
    degraded = [status for status in every if status.mode == "degraded"]
    deciding = min(degraded, key=_since) if degraded else max(every, key=_since)
    worst = min(every, key=lambda status: STATES.index(status.store))
    return msgspec.structs.replace(
        own,
        mode=deciding.mode,
        since_ms=deciding.since_ms,
        why=deciding.why,
        degraded_partitions=sorted({p for status in every for p in status.degraded_partitions}),
        let_through=sum(status.let_through for status in every),
        uncounted=sum(status.uncounted for status in every),
        store=worst.store,
        store_why=worst.store_why,
        processes=len(every),
        degraded_processes=len(degraded),
        failed_closed=sum(status.failed_closed for status in every),
    )


def _since(status: Status) -> int:
    return status.since_ms


def count_by_role(nodes: list[Node]) -> dict[str, int]:
    """Return how many nodes have each role."""
    return dict(Counter(node.role for node in nodes))


def describe_growth(count: PartitionCount, step: GrowthStep) -> str:
    """Return what a step of growing that is under way means, for the operator."""
    return (
        f"the number of partitions grows from {count.partitions} to {step.to}. Until `stoplog topics grow` "
        f"ends, checks are answered without the store, and not counted. If the command has failed, run it "
        f"again, or run `stoplog topics grow --abort`"
    )


def store_state(view: BrokerView | None, count: PartitionCount, nodes: list[Node]) -> tuple[str, str | None]:
    """Return the worst state of the store that holds, and its problem and remedy for the operator.

    Args:
        view: The broker's last answer; ``None`` if there was none yet.
        count: The number of partitions over which this process hashes clients.
        nodes: The nodes that are alive.
    """
    if view is None:
        return CONNECTING, "the broker has not answered yet"
    if view.error is not None:
        return UNREACHABLE, view.error
    partitions = count.partitions
    if not view.partitions:
        return TOPICS_WRONG, "topic checks does not exist: run `stoplog topics create`"
    if view.recorded is None and view.partitions != partitions:
        return TOPICS_WRONG, (
            f"topic checks has {view.partitions} partitions, but topics.yaml requires {partitions}, and no "
            f"worker has recorded the number with which the log began: start a worker, or use the "
            f"topics.yaml with which the topics were created"
        )
    if view.partitions < partitions:
        return TOPICS_WRONG, (
            f"topic checks has {view.partitions} partitions, but clients are hashed over {partitions}: it "
            f"was deleted and created again; see the log of the workers"
        )
    if view.step.under_way:
        return RECOVERING, describe_growth(count, view.step)
    if view.recorded not in (None, count):
        return TOPICS_WRONG, (
            f"clients are hashed over {view.recorded.partitions} partitions, and this process has begun with "
            f"{partitions}: it is changing over"
        )
    states: dict[int, set[str]] = {partition: set() for partition in range(partitions)}
    for node in nodes:
        for partition, owned in node.partitions.items():
            if owned.state != STANDBY:
                states.setdefault(partition, set()).add(owned.state)
    if missing := [p for p, found in states.items() if not found]:
        return NO_WORKER, f"no worker has partition {_listed(missing)}: start one with `stoplog worker`"
    if restoring := [p for p, found in states.items() if RUNNING not in found]:
        return RECOVERING, f"a worker is restoring partition {_listed(restoring)}: wait until it is done"
    if lacking := list(view.under_replicated):
        return UNDER_REPLICATED, (
            f"partition {_listed(lacking)} of checks lacks in-sync replicas: see which broker is down"
        )
    return OK, None


def _listed(partitions: list[int]) -> str:
    return ", ".join(map(str, partitions))
