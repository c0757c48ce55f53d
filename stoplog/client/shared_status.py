"""How several processes on one port are, as one: what ``/v1/status`` and ``/v1/clients/rejected`` say.

Beside its metrics (gateway/stoplog_gateway/server/shared_metrics.py) each process writes, once a second, what it would say alone to
a file of its own in the folder of all; whichever is asked adds the others' to its own. What a process said is
forgotten when it has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from stoplog.client.cluster_status import STATES, Status
from stoplog.client.top_rejected import Summary


class State(msgspec.Struct, frozen=True):
    """What one process would say alone; its status without the nodes, of which each hears for itself."""

    status: Status
    rejected: Summary


class SharedState:
    """What the other processes said of themselves.

    Args:
        own: Reads this process's.
        folder: The same for all processes, and empty when the first starts.
        place: This process's number in it; no two that run have the same.
    """

    def __init__(self, own: Callable[[], State], folder: Path, place: int) -> None:
        self._own = own
        self._folder = folder
        self._file = _file(folder, place)

    def flush(self) -> None:
        """Write this process's; 0.3 ms, at most 30 kB."""
        new = self._file.with_suffix(".new")
        new.write_bytes(msgspec.msgpack.encode(self._own()))
        new.rename(self._file)  # others may be reading it

    def others(self) -> list[State]:
        """Those of the others, as of their last flush."""
        found = []
        for file in self._folder.glob(_file(self._folder, "*").name):
            if file != self._file:
                try:
                    found.append(msgspec.msgpack.decode(file.read_bytes(), type=State))
                except FileNotFoundError:
                    continue  # it has just ended
        return found


def forget_state(folder: Path, place: int) -> None:
    """Forget what the process at *place* said, which has ended."""
    _file(folder, place).unlink(missing_ok=True)


def together(own: Status, others: list[Status]) -> Status:
    """One status of all processes: degraded, and since when, if any is; the store as the worst off sees it.

    Counts are sums, and the nodes are those that *own* heard of.
    """
    every = [own, *others]
    degraded = [status for status in every if status.mode == "degraded"]
    first = min(degraded, key=_since) if degraded else max(every, key=_since)
    worst = min(every, key=lambda status: STATES.index(status.store))
    return msgspec.structs.replace(
        own,
        mode=first.mode,
        since_ms=first.since_ms,
        why=first.why,
        degraded_partitions=sorted({p for status in every for p in status.degraded_partitions}),
        let_through=sum(status.let_through for status in every),
        uncounted=sum(status.uncounted for status in every),
        store=worst.store,
        store_why=worst.store_why,
        processes=len(every),
        degraded_processes=len(degraded),
    )


def _since(status: Status) -> int:
    return status.since_ms


def _file(folder: Path, place: int | str) -> Path:
    return folder / f"state_{place}.msgpack"
