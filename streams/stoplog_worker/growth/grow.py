"""The command ``stoplog topics grow``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Final, NamedTuple

import msgspec
from pydantic import ValidationError
from rich.console import Console

from stoplog.errors import (
    InvalidInput,
    SettingsError,
    StoplogError,
    TopicError,
    Unavailable,
    UndecodableRecord,
)
from stoplog.kafka import clients as kafka
from stoplog.kafka.partition_count import PartitionCountReader, write_partition_count
from stoplog.kafka.topic_admin import add_partitions, lanes_of, topic_names
from stoplog.lanes import DEFAULT_LANE, with_lanes
from stoplog.topics import CHECKS, NODES, UPDATES, load_topics
from stoplog.wire.format import headers_of
from stoplog.wire.heartbeats import HEARTBEAT_S, decode_heartbeat
from stoplog.wire.partition_count import MAX_PARTITIONS, PartitionCount
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.growth.limits import COPIED, LimitsCopy, overwrite_moved, read_updates
from stoplog_worker.growth.split import FILLER, FIRST_OFFSET, new_partitions
from stoplog_worker.growth.states import (
    WriteEntry,
    clear,
    policies_in,
    read_store,
    write_marker,
    write_policies,
    write_states,
)
from stoplog_worker.growth.writer import Writer
from stoplog_worker.kafka.progress_bar import progress_bar
from stoplog_worker.kafka.progress_reader import OnProgress, ProgressReader
from stoplog_worker.restore.lane_bootstrap import changelogs
from stoplog_worker.restore.merge_changelog import read_marker
from stoplog_worker.settings import Settings
from stoplog_worker.state.store import POLICIES, PartitionStore

_ALIVE_S: Final = 3 * HEARTBEAT_S
"""Seconds within which a node that is alive sends a heartbeat."""

_POLL_S: Final = 0.5

_LEADER_S: Final = 60.0
"""Seconds until every new partition must have a leader. A broker with many partitions takes its time."""

_RETRY_S: Final = 0.05

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


class Grown(NamedTuple):
    """What growing has done.

    Attributes:
        before: The number of partitions before.
        after: The number after.
        lanes: How many lanes were split.
        states: Clients' states that were copied, over all lanes.
        limits: Limits that were copied. Those of plans and the default count once for each new partition.
        seconds: How long it took.
    """

    before: PartitionCount
    after: PartitionCount
    lanes: int
    states: int
    limits: int
    seconds: float


class _Lane(NamedTuple):
    """One lane's tables of a partition, and how to write to its changelogs."""

    store: PartitionStore
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
    """Make *number* partitions of those in force, while no worker and no gateway runs.

    Args:
        settings: The settings of a worker.
        number: The number of partitions afterwards.
        on_progress: Called with the current step.

    Returns:
        What was done.

    Raises:
        InvalidInput: *number* is not possible.
        StoplogError: The partitions could not be split. The text states the cause. The number in force is
            the old one, and the command can be run again.
    """
    began = monotonic()
    connection = settings.connection
    before = PartitionCountReader(connection).read()
    if before is None:
        raise TopicError(
            f"{UPDATES} has no record of the number of partitions: start a worker once, or run "
            f"`stoplog topics create`, which record it"
        )
    check_number(before.partitions, number)
    after = PartitionCount(number, before.first)
    reader, writer = ProgressReader(connection, on_progress), Writer(connection)
    lanes, states, limits = 0, 0, 0
    try:
        if number != before.partitions:
            nodes = _Nodes(reader)
            nodes.watch(on_progress)
            split = _Split(settings, reader, writer, before, after)
            states, limits = split.run()
            lanes = len(split.lanes)
            nodes.refuse_live()
            split.refuse_new_records()
            write_partition_count(connection, msgspec.structs.replace(after, copied=split.copied))
        for partition in range(number):
            overwrite_moved(reader, writer, partition, after)
    finally:
        reader.close()
    return Grown(before, after, lanes, states, limits, monotonic() - began)


class _Split:
    """Copies what the new partitions need. Nothing that is in force changes."""

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
                self._await_leader(topic, new)
        for new in range(self._before, self._after.partitions):
            self._begin_log(new)
            self._clear(new)
        totals = [self._split(number, marker) for number, marker in markers.items() if marker is not None]
        return sum(states for states, _ in totals), sum(limits for _, limits in totals)

    @property
    def copied(self) -> tuple[int, ...]:
        """The end of each old partition of ``limit-updates``, up to which its updates were copied."""
        return tuple(self._ends[UPDATES, number] for number in range(self._before))

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
                name = lane or DEFAULT_LANE
                raise TopicError(
                    f"lane {name} has not decided all of {CHECKS}[{number}] (it is at {max(0, reached)} of "
                    f"{end}): start its workers, wait until their metric stoplog_worker_record_lag is 0, "
                    f"stop them with SIGTERM, and run the command again. If there is no lane {name} any "
                    f"more, delete its changelogs"
                )
        return markers[""]

    def _last_marker(self, lane: str, number: int) -> Marker | None:
        topic = changelogs(lane)[POLICIES]
        return read_marker(self._reader, topic, number, *self._reader.offset_range(topic, number))

    @contextmanager
    def _opened(self, number: int) -> Iterator[list[_Lane]]:
        """Read every lane's tables of a partition, the default lane's first."""
        with TemporaryDirectory(prefix="stoplog-grow-") as folder, ExitStack() as stack:
            yield [self._open(lane, number, Path(folder), stack) for lane in self.lanes]

    def _open(self, lane: str, number: int, folder: Path, stack: ExitStack) -> _Lane:
        topics, own = changelogs(lane), folder / (lane or DEFAULT_LANE)
        own.mkdir()
        store = stack.enter_context(closing(read_store(self._reader, topics, number, own)))

        def write(table: str, partition: int, key: bytes, value: bytes) -> None:
            self._writer.write(topics[table], partition, key, value)

        return _Lane(store, write)

    def _clear(self, new: int) -> None:
        """Empty what an interrupted attempt has written to a new partition."""
        LimitsCopy(self._reader, self._writer, new, self._after).clear()
        topics = [topic for lane in self.lanes for topic in changelogs(lane).values()]
        if any(self._reader.offset_range(topic, new)[1] for topic in topics):
            with self._opened(new) as lanes:
                for lane in lanes:
                    clear(lane.store, lane.write)
        self._writer.flush()

    def _await_leader(self, topic: str, partition: int) -> None:
        """Wait until the leader of a partition that was just added answers."""
        give_up_at = monotonic() + _LEADER_S
        while True:
            try:
                self._reader.offset_range(topic, partition)
                return
            except Unavailable:
                if monotonic() > give_up_at:
                    raise
                sleep(_RETRY_S)

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
        with self._opened(number) as lanes:
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


class _Nodes:
    """Looks for workers, gateways and programs with the SDK that run."""

    def __init__(self, reader: ProgressReader) -> None:
        self._reader = reader
        _, self._start = reader.offset_range(NODES, 0)

    def watch(self, on_progress: OnProgress) -> None:
        """Wait until every node that is alive must have sent a heartbeat.

        Raises:
            TopicError: A node is alive.
        """
        began = monotonic()
        while (passed := monotonic() - began) < _ALIVE_S:
            on_progress("looking for workers and gateways that run", passed, _ALIVE_S)
            sleep(_POLL_S)
        self.refuse_live()

    def refuse_live(self) -> None:
        """Refuse to go on if a node has sent a heartbeat since the beginning that was not its last.

        Raises:
            TopicError: A node has.
        """
        _, end = self._reader.offset_range(NODES, 0)
        alive = set()
        for message in self._reader.read(NODES, 0, self._start, end):
            try:
                heartbeat = decode_heartbeat(message.value())
            except UndecodableRecord:
                continue
            if heartbeat.stopping:
                alive.discard(heartbeat.id)
            else:
                alive.add(heartbeat.id)
        if alive:
            raise TopicError(
                f"still running: {', '.join(sorted(alive))}. Stop gateways and programs with the SDK first, "
                f"then the workers of all lanes, with SIGTERM, and run the command again"
            )


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser("stoplog topics grow")
    parser.add_argument("number", type=int)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args(arguments)
    try:
        with progress_bar(_err) as on_progress:
            grown = grow(Settings(), options.number, on_progress)
    except (StoplogError, ValidationError, OSError) as exc:
        _err.print(f"stoplog: {exc}", style="red", markup=False)
        return EXIT_USAGE if isinstance(exc, InvalidInput | SettingsError | ValidationError) else EXIT_FAILED
    if options.as_json:
        found = {
            "before": grown.before.partitions,
            "after": grown.after.partitions,
            "lanes": grown.lanes,
            "states": grown.states,
            "limits": grown.limits,
            "seconds": round(grown.seconds, 3),
        }
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    elif grown.before.partitions == grown.after.partitions:
        _out.print(f"clients are hashed over {grown.after.partitions} partitions already")
    else:
        _out.print(
            f"clients are now hashed over {grown.after.partitions} partitions: {grown.states:,} states and "
            f"{grown.limits:,} limits were copied in {grown.seconds:.1f} s. Start the workers, then the "
            f"gateways"
        )
    return 0
