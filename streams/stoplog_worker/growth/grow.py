"""Make more partitions of those in force."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Final, NamedTuple, NoReturn, Self

from stoplog.errors import InvalidInput, TopicError, Unavailable
from stoplog.kafka import clients as kafka
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import PartitionCountReader
from stoplog.kafka.topic_admin import add_partitions, lanes_of, topic_names
from stoplog.lanes import DEFAULT_LANE, with_lanes
from stoplog.topics import CHECKS, UPDATES, load_topics
from stoplog.wire.format import headers_of
from stoplog.wire.partition_count import MAX_PARTITIONS, PartitionCount
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.growth.limits import COPIED, LimitsCopy, overwrite_moved, read_updates
from stoplog_worker.growth.members import Members, names, refuse_old
from stoplog_worker.growth.owned_record import OwnedRecord, Superseded
from stoplog_worker.growth.split import FILLER, FIRST_OFFSET, new_partitions
from stoplog_worker.growth.states import (
    WriteEntry,
    clear,
    policies_in,
    read_on,
    read_store,
    write_marker,
    write_policies,
    write_states,
)
from stoplog_worker.growth.step import Outcome, Step
from stoplog_worker.growth.writer import Writer
from stoplog_worker.kafka.progress_reader import OnProgress, ProgressReader
from stoplog_worker.restore.lane_bootstrap import changelogs
from stoplog_worker.restore.merge_changelog import read_marker
from stoplog_worker.settings import Settings
from stoplog_worker.state.store import POLICIES, PartitionStore

_SILENCE_S: Final = 60.0
"""Seconds until a partition must have a leader that answers. A broker that gets many partitions takes long,
and a cluster notices after 9 s that it has lost a broker."""

_PAUSE_S: Final = 3.3
"""Seconds of the pause with few clients: gateways and workers confirm, and workers join their group again.
Measured by ``python -m tests.benchmarks.growing``, as is the next one."""

_WRITE_STATE_S: Final = 16e-6
"""Seconds to write a state, and for its new owner to read it."""


class Grown(NamedTuple):
    """What growing has done.

    Attributes:
        before: The number of partitions before.
        after: The number after.
        lanes: How many lanes were split.
        states: Clients' states that were copied, over all lanes.
        limits: Limits that were copied. Those of plans and the default count once for each new partition.
        seconds: How long it took.
        nodes: How many gateways and workers ran at the beginning.
        pause_s: Seconds from the beginning of the pause until all of them answered checks again. ``None`` if
            they did not within a minute.
        checks: Checks, settlements, charges and refunds that are not counted, as the gateways report.
    """

    before: PartitionCount
    after: PartitionCount
    lanes: int
    states: int
    limits: int
    seconds: float
    nodes: int = 0
    pause_s: float | None = None
    checks: int = 0


class _Lane(NamedTuple):
    """One lane's tables of a partition, its changelogs, and how to write to them."""

    store: PartitionStore
    changelogs: dict[str, str]
    write: WriteEntry


def check_number(before: int, after: int) -> None:
    """Refuse a number of partitions that does not split those that exist.

    Raises:
        InvalidInput: *after* is no multiple of *before*, or too large.
    """
    if after > MAX_PARTITIONS:
        raise InvalidInput("number of partitions", f"{after} is too large", f"use at most {MAX_PARTITIONS:,}")
    if after < before or after % before:
        times = after // before
        nearest = sorted({max(2, times) * before, max(2, times + 1) * before})
        raise InvalidInput(
            "number of partitions",
            f"{after} is no multiple of {before}, the number in force",
            f"use {' or '.join(map(str, nearest))}: growing splits each partition into equal parts",
        )


def grow(settings: Settings, number: int, on_progress: OnProgress) -> Grown:
    """Make *number* partitions of those in force.

    Gateways and workers that run pause meanwhile.

    Args:
        settings: The settings of a worker.
        number: The number of partitions afterwards.
        on_progress: Called with the current step.

    Returns:
        What was done.

    Raises:
        InvalidInput: *number* is not possible.
        StoplogError: The partitions could not be split. The text states the cause, and a note of the
            exception what has changed. So does a note of ``KeyboardInterrupt``.
    """
    began = monotonic()
    record = _record(settings.connection, number)
    before = record.last.count
    after = PartitionCount(number, before.first)
    reader, writer = ProgressReader(settings.connection, on_progress, _SILENCE_S), Writer(settings.connection)
    grown = Grown(before, after, 0, 0, 0, 0.0)
    try:
        if number == before.partitions:
            _tidy_up(reader, writer, after)
            return grown._replace(seconds=monotonic() - began)
        members = Members(reader, on_progress)
        step = Step(record, members, after)
        with _consequence(step):
            members.watch()
            nodes = len(members.poll())  # later, a worker may be silent while it becomes a new process
            with _Split(settings, reader, writer, before, after) as split:
                split.read()
                split.refuse_idle_lanes(members.lanes())
                paused_at = monotonic()
                with _giving_up(step):
                    step.begin()
                    states, limits = split.run()
                    step.look_again()
                    split.refuse_new_records()
                    step.finish(split.copied)
            answered = step.wait_for_answers()
            pause_s = monotonic() - paused_at if answered else None
            checks = members.checks(step.epoch)
            grown = Grown(before, after, len(split.lanes), states, limits, 0.0, nodes, pause_s, checks)
            _tidy_up(reader, writer, after)
    finally:
        reader.close()
    return grown._replace(seconds=monotonic() - began)


def _tidy_up(reader: ProgressReader, writer: Writer, count: PartitionCount) -> None:
    for partition in range(count.partitions):
        overwrite_moved(reader, writer, partition, count)


def _record(connection: KafkaConnection, number: int) -> OwnedRecord:
    """Return the record of the number of partitions, which can become *number*."""
    reader = PartitionCountReader(connection)
    record = reader.read_record()
    if record is None:
        raise TopicError(
            f"{UPDATES} has no record of the number of partitions: start a worker once, or run "
            f"`stoplog topics create`, which record it"
        )
    to = record.step.to
    if to not in (None, number):
        raise InvalidInput(
            "number of partitions",
            f"a command that grows to {to} was interrupted",
            f"run `stoplog topics grow {to}` again, or `stoplog topics grow --abort`",
        )
    check_number(record.count.partitions, number)
    return OwnedRecord(connection, reader, record)


@contextmanager
def _consequence(step: Step) -> Iterator[None]:
    """Add to an exception what the command has changed."""
    try:
        yield
    except Superseded:
        raise
    except BaseException as exc:
        if step.outcome is not Outcome.UNCHANGED or isinstance(exc, KeyboardInterrupt):
            exc.add_note(step.consequence)
        raise


@contextmanager
def _giving_up(step: Step) -> Iterator[None]:
    """Have the system continue with the old number if the block fails before the new one is in force."""
    try:
        yield
    except Superseded:
        raise
    except BaseException as exc:
        try:
            step.give_up()
        except (Unavailable, PermissionError) as failed:
            exc.add_note(f"the old number could not be recorded ({failed})")
        raise


class Estimate(NamedTuple):
    """What growing would do.

    Attributes:
        before: The number of partitions.
        after: The number afterwards.
        lanes: How many lanes would be split.
        states: Clients' states that would be copied, over all lanes.
        nodes: The names of the gateways and workers that run.
        pause_s: Estimated seconds of the pause.
    """

    before: PartitionCount
    after: PartitionCount
    lanes: int
    states: int
    nodes: list[str]
    pause_s: float


def estimate(settings: Settings, number: int, on_progress: OnProgress) -> Estimate:
    """Return what :func:`grow` would do. Changes nothing; the arguments and errors are the same."""
    before = _record(settings.connection, number).last.count
    after = PartitionCount(number, before.first)
    reader, writer = ProgressReader(settings.connection, on_progress, _SILENCE_S), Writer(settings.connection)
    try:
        members = Members(reader, on_progress)
        members.watch()
        live = members.poll()
        refuse_old(live)
        with _Split(settings, reader, writer, before, after) as split:
            states = 0
            if number != before.partitions:
                split.read()
                split.refuse_idle_lanes(members.lanes())
                states = split.count_states()
            pause_s = _PAUSE_S + states * _WRITE_STATE_S
            return Estimate(before, after, len(split.lanes), states, [names([one]) for one in live], pause_s)
    finally:
        reader.close()


class _Split:
    """Copies what the new partitions need. Nothing that is in force changes. Use it as a context manager."""

    def __init__(
        self,
        settings: Settings,
        reader: ProgressReader,
        writer: Writer,
        before: PartitionCount,
        after: PartitionCount,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._before = before.partitions
        self._after = after
        self._admin = kafka.silent_admin(settings.connection)
        self._present = topic_names(self._admin)
        self.lanes = lanes_of(self._present)
        self._specs = with_lanes(load_topics(settings.topics), self.lanes)
        self._ends: dict[tuple[str, int], int] = {}
        """Where the topics ended when their content was read."""
        self._stack = ExitStack()
        self._opened: dict[int, list[_Lane]] = {}
        """Every lane's tables of the old partitions, the default lane's first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self) -> None:
        """Read the tables of the old partitions. Later, only what is new has to be read.

        Raises:
            Unavailable: The broker does not answer.
        """
        for number in range(self._before):
            self._opened[number] = self._open_all(number, self._stack)

    def run(self) -> tuple[int, int]:
        """Copy; return how many states and limits were copied."""
        markers = {number: self._marker(number) for number in range(self._before)}
        copartitioned = {spec.name for spec in self._specs.values() if spec.copartitioned}
        topics = sorted(copartitioned & self._present)  # a system of an older release has no audit
        add_partitions(self._admin, topics, self._after.partitions)
        self._reader.fetch_metadata(topics)
        self._writer.fetch_metadata(topics)
        for topic in topics:
            for new in range(self._before, self._after.partitions):
                self._reader.offset_range(topic, new)  # once its leader answers
        for new in range(self._before, self._after.partitions):
            self._begin_log(new)
            self._clear(new)
        totals = [self._split(number, marker) for number, marker in markers.items() if marker is not None]
        return sum(states for states, _ in totals), sum(limits for _, limits in totals)

    @property
    def copied(self) -> tuple[int, ...]:
        """The end of each old partition of ``limit-updates``, up to which its updates were copied."""
        return tuple(self._ends[UPDATES, number] for number in range(self._before))

    def count_states(self) -> int:
        """Return how many states would be copied."""
        counted = 0

        def count(*_: object) -> None:
            nonlocal counted
            counted += 1

        for lanes in self._opened.values():
            for lane in lanes:
                if lane.store.marker() is not None:
                    write_states(lane.store, count, self._before, self._after.partitions)
        return counted

    def refuse_new_records(self) -> None:
        """Refuse to go on if an old partition has got records that were not copied.

        Raises:
            TopicError: It has.
        """
        for (topic, number), end in self._ends.items():
            now = self._reader.offset_range(topic, number)[1]
            if now != end:
                raise TopicError(
                    f"{topic}[{number}] has got {now - end} records while the partitions were split: stop "
                    f"all producers of {topic}, start the workers, and grow again from the first step"
                )

    def refuse_idle_lanes(self, working: set[str]) -> None:
        """Refuse to begin if a lane has no worker that could decide what is in the log.

        Args:
            working: The names of the lanes that have workers.

        Raises:
            TopicError: A lane is behind, and has no worker; names it.
        """
        for number, lanes in self._opened.items():
            low, end = self._reader.offset_range(CHECKS, number)
            for lane, opened in zip(self.lanes, lanes, strict=True):
                marker = opened.store.marker()
                name = lane or DEFAULT_LANE
                if name not in working and low < end and (marker is None or marker.next_offset < end):
                    _refuse_behind(name, number, marker, end)

    def _marker(self, number: int) -> Marker | None:
        """Return the marker of an old partition, whose whole log is decided; ``None`` if there is no log.

        Raises:
            TopicError: A lane has not decided everything.
        """
        ends = {topic: self._reader.offset_range(topic, number) for topic in (CHECKS, UPDATES)}
        self._ends |= {(topic, number): end for topic, (_, end) in ends.items()}
        markers = {lane: self._last_marker(lane, number) for lane in self.lanes}
        if not any(markers.values()) and all(low == end for low, end in ends.values()):
            return None
        _, end = ends[CHECKS]
        for lane, marker in markers.items():
            reached = marker.next_offset if marker is not None else -1
            if reached < end:
                _refuse_behind(lane or DEFAULT_LANE, number, marker, end)
        return markers[""]

    def _last_marker(self, lane: str, number: int) -> Marker | None:
        topic = changelogs(lane)[POLICIES]
        return read_marker(self._reader, topic, number, *self._reader.offset_range(topic, number))

    def _open_all(self, number: int, stack: ExitStack) -> list[_Lane]:
        """Read every lane's tables of a partition; *stack* closes and removes them."""
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="stoplog-grow-")))
        return [self._open(lane, number, folder, stack) for lane in self.lanes]

    def _open(self, lane: str, number: int, folder: Path, stack: ExitStack) -> _Lane:
        topics, own = changelogs(lane), folder / (lane or DEFAULT_LANE)
        own.mkdir()
        store = stack.enter_context(closing(read_store(self._reader, topics, number, own)))

        def write(table: str, partition: int, key: bytes, value: bytes) -> None:
            self._writer.write(topics[table], partition, key, value)

        return _Lane(store, topics, write)

    def _clear(self, new: int) -> None:
        """Empty what an interrupted attempt has written to a new partition."""
        LimitsCopy(self._reader, self._writer, new, self._after).clear()
        topics = [topic for lane in self.lanes for topic in changelogs(lane).values()]
        if any(self._reader.offset_range(topic, new)[1] for topic in topics):
            with ExitStack() as stack:
                for lane in self._open_all(new, stack):
                    clear(lane.store, lane.write)
        self._writer.flush()

    def _begin_log(self, new: int) -> None:
        """Put the record that decides nothing at the beginning of ``checks`` in a new partition."""
        low, end = self._reader.offset_range(CHECKS, new)
        if end == 0:
            self._writer.write(CHECKS, new, None, FILLER)
            self._writer.flush()
            low, end = self._reader.offset_range(CHECKS, new)
        if low:
            return
        records = self._reader.read(CHECKS, new, 0, end)
        first = next(records)
        if first.value() != FILLER and not any(COPIED in (headers_of(one) or []) for one in records):
            # Another producer was quicker. Its record will not be decided at offset 0, so it comes again.
            self._writer.write(CHECKS, new, first.key(), first.value(), [COPIED])
            self._writer.flush()

    def _first_offset(self, new: int, stamp_ms: int) -> int:
        """Return the first offset to decide in ``checks``. Records from before *stamp_ms* are left out."""
        low, end = self._reader.offset_range(CHECKS, new)
        start = max(low, FIRST_OFFSET)
        for message in self._reader.read(CHECKS, new, start, end):
            if message.timestamp()[1] >= stamp_ms:
                return int(message.offset())
        return max(start, end)

    def _split(self, number: int, marker: Marker) -> tuple[int, int]:
        waiting = list(read_updates(self._reader, number, marker.applied + 1))
        lanes = self._opened[number]
        for lane in lanes:
            read_on(self._reader, lane.changelogs, lane.store)
        policies = [policies_in(lane.store) for lane in lanes]
        states = sum(
            write_states(lane.store, lane.write, self._before, self._after.partitions) for lane in lanes
        )
        limits = 0
        for new in new_partitions(number, self._before, self._after.partitions):
            copy = LimitsCopy(self._reader, self._writer, new, self._after)
            versions, applied = copy.write(marker.stamp_ms, policies[0], waiting)
            limits += len(versions)
            first = self._first_offset(new, marker.stamp_ms)
            for lane, in_force in zip(lanes, policies, strict=True):
                write_policies(in_force, lane.write, new, versions)
                self._writer.flush()  # a marker is the last entry: everything else is there
                write_marker(lane.store, lane.write, new, first, applied)
        self._writer.flush()
        return states, limits


def _refuse_behind(lane: str, partition: int, marker: Marker | None, end: int) -> NoReturn:
    reached = marker.next_offset if marker is not None else 0
    raise TopicError(
        f"lane {lane} has not decided all of {CHECKS}[{partition}] (it is at {reached} of {end}): start its "
        f"workers, wait until their metric stoplog_worker_record_lag is 0, stop them with SIGTERM, and run "
        f"the command again. If there is no lane {lane} any more, delete its changelogs"
    )
