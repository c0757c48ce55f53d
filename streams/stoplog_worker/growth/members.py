"""The workers, gateways and programs with the SDK that run, and what each does for a step of growing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Final, NamedTuple

from msgspec import UNSET

from stoplog.errors import TopicError, UndecodableRecord
from stoplog.topics import NODES
from stoplog.wire.heartbeats import HEARTBEAT_S, RUNNING, GrowthState, Heartbeat, decode_heartbeat
from stoplog_worker.kafka.progress_reader import OnProgress, ProgressReader

WATCH_S: Final = 3 * HEARTBEAT_S
"""Seconds within which a node that is alive sends a heartbeat."""

GONE_S: Final = 10.0
"""Seconds without a heartbeat after which a node is no longer alive."""

_TAIL: Final = 10_000
"""Earlier heartbeats that are read: those of 1,000 nodes in 20 s."""

_POLL_S: Final = 0.05

_LONG_POLL_S: Final = 1.0
"""Seconds after which silence is no longer that of the nodes: the broker did not answer meanwhile."""


class Member(NamedTuple):
    """A node that is alive.

    Attributes:
        heartbeat: Its last heartbeat.
        offset: The offset of that heartbeat.
        at: When it was read, monotonic seconds.
    """

    heartbeat: Heartbeat
    offset: int
    at: float

    @property
    def works(self) -> bool:
        """Whether it is a worker."""
        return self.heartbeat.role == "worker"

    @property
    def growth(self) -> GrowthState:
        """What it does for a step of growing."""
        growth = self.heartbeat.growth
        return GrowthState() if growth is UNSET else growth

    @property
    def running(self) -> set[int]:
        """The partitions whose checks a worker decides."""
        return {number for number, one in self.heartbeat.partitions.items() if one.state == RUNNING}


Condition = Callable[[Member], bool]


class Members:
    """Follows the heartbeats from now on.

    Args:
        reader: Reads ``nodes``.
        on_progress: Called while waiting.
    """

    def __init__(self, reader: ProgressReader, on_progress: OnProgress) -> None:
        self._reader = reader
        self._on_progress = on_progress
        self._low, self.next_offset = reader.offset_range(NODES, 0)
        self._last: dict[str, Member] = {}
        self._heard: set[str] = set()
        """The nodes that have sent a heartbeat since the beginning."""

    def watch(self) -> None:
        """Wait until every node that is alive has sent a heartbeat, or would have."""
        expected, began = self._expected(), monotonic()
        self.poll()
        while expected - self._heard and (passed := monotonic() - began) < WATCH_S:
            self._on_progress("looking for workers and gateways that run", passed, WATCH_S)
            sleep(_POLL_S)
            self.poll()

    def _expected(self) -> set[str]:
        """Return the nodes that had not announced their end at the beginning."""
        found: set[str] = set()
        end = self.next_offset
        for _, heartbeat in self._heartbeats(max(self._low, end - _TAIL), end):
            (found.discard if heartbeat.stopping else found.add)(heartbeat.id)
        return found

    def _heartbeats(self, start: int, end: int) -> Iterator[tuple[int, Heartbeat]]:
        """Yield the heartbeats in a range of offsets, with their offsets."""
        for message in self._reader.read(NODES, 0, start, end):
            try:
                yield message.offset(), decode_heartbeat(message.value())
            except UndecodableRecord:
                continue

    def poll(self) -> list[Member]:
        """Read the heartbeats that have come; return the nodes that are alive.

        Silence counts only while heartbeats can be read.
        """
        began = monotonic()
        _, end = self._reader.offset_range(NODES, 0)
        heartbeats = list(self._heartbeats(self.next_offset, end))
        now = monotonic()
        if (passed := now - began) > _LONG_POLL_S:
            self._last = {id_: one._replace(at=one.at + passed) for id_, one in self._last.items()}
        for offset, heartbeat in heartbeats:
            self._heard.add(heartbeat.id)
            if heartbeat.stopping:
                self._last.pop(heartbeat.id, None)
            else:
                self._last[heartbeat.id] = Member(heartbeat, offset, now)
        self.next_offset = max(self.next_offset, end)
        return [one for one in self._last.values() if now - one.at < GONE_S]

    def wait(self, step: str, condition: Condition, for_s: float) -> None:
        """Wait until *condition* holds for every node that is alive.

        Args:
            step: Names this wait in the progress and the error.
            condition: Returns whether a node has done it.
            for_s: Seconds after which to give up.

        Raises:
            TopicError: It does not hold; names the nodes.
        """
        began = monotonic()
        while missing := [one for one in self.poll() if not condition(one)]:
            passed = monotonic() - began
            if passed > for_s:
                raise TopicError(
                    f"{step}: {names(missing)} did not confirm within {for_s:g} s. See the log there"
                )
            self._on_progress(step, passed, for_s)
            sleep(_POLL_S)

    def lanes(self) -> set[str]:
        """Return the names of the lanes that have a worker."""
        return {one.heartbeat.lane for one in self.poll() if one.works}

    def wait_for_answers(self, epoch: int, partitions: int, lanes: set[str], for_s: float) -> bool:
        """Wait until all gateways publish again, and the workers of all lanes decide all *partitions*.

        Args:
            epoch: The step that is over.
            partitions: The number of partitions.
            lanes: The lanes that had workers at the beginning.
            for_s: Seconds to wait at most.

        Returns:
            Whether they do within *for_s* seconds; false at once if there are no *lanes*.
        """
        began = monotonic()
        while lanes and not _answers(self.poll(), epoch, partitions, lanes):
            passed = monotonic() - began
            if passed > for_s:
                return False
            self._on_progress("the system continues", passed, for_s)
            sleep(_POLL_S)
        return bool(lanes)

    def checks(self, epoch: int) -> int:
        """Return how many calls the gateways have not published because of the step *epoch*."""
        return sum(one.growth.checks for one in self._last.values() if one.growth.epoch == epoch)


def _answers(members: list[Member], epoch: int, partitions: int, lanes: set[str]) -> bool:
    running: dict[str, set[int]] = {lane: set() for lane in lanes}
    for one in members:
        if one.growth.epoch != epoch or one.growth.paused:
            return False
        if one.works:
            running.setdefault(one.heartbeat.lane, set()).update(one.running)
    return all(len(found) == partitions for found in running.values())


def refuse_old(members: Iterator[Member] | list[Member]) -> None:
    """Refuse to grow while a program runs that does not know the steps.

    Raises:
        TopicError: One runs; names it.
    """
    old = [one for one in members if one.heartbeat.growth is UNSET]
    if old:
        raise TopicError(
            f"{names(old)} run(s) a release that cannot pause while the number of partitions grows: upgrade "
            f"or stop it, and run the command again"
        )


def names(members: list[Member]) -> str:
    """Return the names and versions of *members*, for an error."""
    found = sorted(f"{one.heartbeat.role} {one.heartbeat.id} ({one.heartbeat.version})" for one in members)
    return ", ".join(found)
