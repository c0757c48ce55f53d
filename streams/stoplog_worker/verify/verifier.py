"""Proof on a running system: state at one marker and the log up to a later one make the state there.

For each partition the changelogs are read to their end, which gives a first marker and the state there.
When the owner has flushed a later marker, the log between the two is folded over that state
(:func:`stoplog_worker.algorithm.fold.fold`), and what comes out is held against what the owner wrote meanwhile, and against
the replies that callers got. Nothing is written to any topic, and no group is joined.

States may be ahead of the marker they are read with: of the first, the fold passes over what they hold, as
a worker's does after a crash; of the later one, the fold goes on until it comes to theirs. What was stored
before the first marker is on disk in a folder of the caller's; the clients seen and the replies sent between
the markers are held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import msgspec
from rocksdict import Options, Rdict

from stoplog.errors import Unavailable, UndecodableRecord
from stoplog.topics import CHECKS, REPLIES, TopicSpec
from stoplog.wire.checks import POSITION_BITS, Batch
from stoplog.wire.replies import Decision, decode_reply
from stoplog_worker.algorithm.fold import Answer, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import (
    MARKER_KEY,
    Marker,
    PolicyChange,
    decode_history,
    decode_marker,
    decode_state,
    position_of,
)
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, PartitionStore, Record
from stoplog_worker.verify.progress_reader import Reading

_BATCH: Final = 10_000
_FLUSH_S: Final = 75.0
"""How long a worker that has judged may take to flush: the longest interval allowed, and some."""
_SHOWN: Final = 10
"""Differences told of in words, per partition; the others are only counted."""

_Replies = dict[tuple[int, int], list[bytes]]
"""Replies by incarnation and number of the batch they answer."""


class Finding(msgspec.Struct):
    """What was found in one partition.

    ``start`` and ``end`` are the offsets of the markers, equal if nothing moved. ``decisions`` were
    recomputed, ``replies`` of them compared with what a caller was told; ``states`` and ``policies`` were
    compared with the changelogs, but for policies ``ahead``, which were changed after ``end``. ``differ``
    counts all that is not as it was recomputed, and ``differences`` says how.
    """

    partition: int
    start: int
    end: int
    decisions: int = 0
    replies: int = 0
    states: int = 0
    policies: int = 0
    ahead: int = 0
    differ: int = 0
    differences: list[str] = msgspec.field(default_factory=list)

    def note(self, difference: str) -> None:
        """Count a difference."""
        self.differ += 1
        if len(self.differences) < _SHOWN:
            self.differences.append(difference)


class Verification:
    """Of all partitions of a running system: :meth:`begin`, let the log go on, :meth:`finish`.

    Args:
        reading: Reads the topics.
        specs: The topics.
        changelogs: The changelog topic of each table.
        folder: An empty one, for what the changelogs hold.
    """

    def __init__(
        self, reading: Reading, specs: dict[str, TopicSpec], changelogs: dict[str, str], folder: Path
    ) -> None:
        self._reading = reading
        self._partitions = specs[CHECKS].partitions
        self._changelogs = changelogs
        self._reply_starts = {
            partition: reading.offset_range(REPLIES, partition)[1]
            for partition in range(specs[REPLIES].partitions)
        }
        self._bases = [_new_store(number, folder / "base") for number in range(self._partitions)]
        self._laters = [_new_store(number, folder / "later") for number in range(self._partitions)]

    def begin(self) -> None:
        """Read the changelogs to their present end: the first markers, and the states there."""
        ends = [self._ends(number) for number in range(self._partitions)]
        for number, store in enumerate(self._bases):
            for table in TABLES:
                self._merge_whole(store, table, ends[number][table])
                self._laters[number].next_offset[table] = store.next_offset[table] = ends[number][table]

    def finish(self) -> list[Finding]:
        """Wait for later markers, recompute and compare.

        Raises:
            Unavailable: records were published and no worker has flushed what it made of them.
            OffsetGone: the log no longer reaches back to a first marker.
        """
        markers = [self._later_marker(number) for number in range(self._partitions)]
        replies = self._read_replies()
        return [self._compare(number, marker, replies) for number, marker in enumerate(markers)]

    def close(self) -> None:
        """Close the stores; the folder may then be removed."""
        for store in (*self._bases, *self._laters):
            store.close()

    # --- reading ---

    def _ends(self, number: int) -> dict[str, int]:
        # Policies first: all states up to a marker found there lie below the counters' end asked for after.
        return {
            table: self._reading.offset_range(self._changelogs[table], number)[1]
            for table in (POLICIES, COUNTERS)
        }

    def _merge_whole(self, store: PartitionStore, table: str, end: int) -> None:
        """Take the changelog up to *end* into *store*, which is empty."""
        topic, number = self._changelogs[table], store.partition
        while True:
            begin, _ = self._reading.offset_range(topic, number)
            self._merge(store, table, end)
            if self._reading.offset_range(topic, number)[0] == begin:
                return
            # Its owner has shortened it meanwhile: what was deleted may have followed on what was read.
            store.clear_counters()

    def _merge(self, store: PartitionStore, table: str, end: int, below: int | None = None) -> None:
        """Take the changelog up to *end* into *store*; with *below* only what is of lower positions."""
        topic, begin = self._changelogs[table], store.next_offset[table]
        batch: list[Record] = []
        for message in self._reading.read(
            topic, store.partition, begin, end, "error" if begin else "earliest"
        ):
            record = Record(message.offset(), message.key(), message.value())
            entry = record.entry(table)
            if below is None or (entry is not None and position_of(entry[1]) < below):
                batch.append(record)
            if len(batch) == _BATCH:
                store.merge(table, batch)
                batch = []
        if batch:
            store.merge(table, batch)

    def _later_marker(self, number: int) -> Marker | None:
        """Wait for a later marker and read both changelogs up to it; ``None`` if nothing has moved."""
        later, first = self._laters[number], self._bases[number].marker()
        give_up = monotonic() + _FLUSH_S
        while True:
            low, high = self._reading.offset_range(CHECKS, number)
            start = first.next_offset if first else low
            ends = self._ends(number)
            marker = self._last_marker(number, ends[POLICIES])
            if marker is not None and marker.next_offset > start:
                break
            if high <= start:
                return None
            if monotonic() > give_up:
                raise Unavailable(
                    f"{CHECKS}[{number}] has records from offset {start} on, and no worker has flushed them "
                    f"in {_FLUSH_S:.0f} s: see that a worker runs and owns the partition (`stoplog status`)"
                )
            sleep(0.1)
        below = marker.next_offset << POSITION_BITS
        self._merge(later, COUNTERS, ends[COUNTERS])
        self._merge(later, POLICIES, ends[POLICIES], below)
        return marker

    def _last_marker(self, number: int, end: int) -> Marker | None:
        last = None
        start = self._laters[number].next_offset[POLICIES]
        for message in self._reading.read(self._changelogs[POLICIES], number, start, end):
            entry = Record(message.offset(), message.key(), message.value()).entry(POLICIES)
            if entry is not None and entry[0] == MARKER_KEY:
                found = decode_marker(entry[1])
                if last is None or found.next_offset >= last.next_offset:
                    last = found
        return last

    def _read_replies(self) -> _Replies:
        replies: _Replies = {}
        for partition, start in self._reply_starts.items():
            _, end = self._reading.offset_range(REPLIES, partition)
            for message in self._reading.read(REPLIES, partition, start, end):
                value = message.value() or b""
                try:
                    reply = decode_reply(value)
                except UndecodableRecord:
                    continue  # to a single check, or noise
                replies.setdefault((reply.incarnation, reply.number), []).append(value)
        return replies

    # --- comparing ---

    def _compare(self, number: int, marker: Marker | None, replies: _Replies) -> Finding:
        base, later = self._bases[number], self._laters[number]
        first = base.marker()
        if marker is None:
            offset = first.next_offset if first else 0
            return Finding(number, offset, offset)
        if first is None:
            low, _ = self._reading.offset_range(CHECKS, number)
            first = Marker(low, 0, -1, -1, marker.topic_id, marker.default)
        # It may have been written before markers had them, or be the copy that a lane began with.
        first = msgspec.structs.replace(
            first,
            updates_id=first.updates_id or marker.updates_id,
            changelog_ids=first.changelog_ids or marker.changelog_ids,
        )
        finding = Finding(number, first.next_offset, marker.next_offset)
        ledger = Ledger(base, first)
        for _ in self._fold(ledger, number, marker.next_offset, replies, finding):
            pass  # what there is to say is in the finding
        recomputed, entries = ledger.take_dirty()
        if recomputed != marker:
            finding.note(f"the marker: recomputed {recomputed}, stored {marker}")
        ahead = marker.next_offset << POSITION_BITS
        counters = dict(entries.counters)
        beyond: dict[int, list[tuple[bytes, bytes]]] = {}
        for key, before, found in _changes(base, later, COUNTERS, counters):
            if found is not None and position_of(found) >= ahead:
                beyond.setdefault(position_of(found) >> POSITION_BITS, []).append((key, found))
            else:
                _compare_states(key, counters.get(key, before), found, marker.clock_ms, finding)
        policies = dict(entries.policies)
        for key, before, found in _changes(base, later, POLICIES, policies):
            value = policies.get(key, before)
            if key == MARKER_KEY:
                continue
            if any(v is not None and position_of(v) >= ahead for v in (value, found)):
                finding.ahead += 1
                continue
            finding.policies += 1
            if not _same_history(value, found):
                name = key.decode(errors="replace").replace("\0", " ").strip()
                finding.note(f"limits of {name}: not those that came by in the log")
        self._compare_beyond(ledger, number, beyond, replies, finding)
        return finding

    def _compare_beyond(
        self,
        ledger: Ledger,
        number: int,
        beyond: dict[int, list[tuple[bytes, bytes]]],
        replies: _Replies,
        finding: Finding,
    ) -> None:
        """States flushed as they were after the marker, by offset: the fold goes on and comes by each."""
        if not beyond:
            return
        _, high = self._reading.offset_range(CHECKS, number)
        for offset in self._fold(ledger, number, min(max(beyond) + 1, high), replies, finding):
            for key, found in beyond.pop(offset, ()):
                _compare_states(key, ledger.encoded_state(key), found, ledger.clock_ms, finding)
        # The log has nothing there.
        for key, found in chain.from_iterable(beyond.values()):
            _compare_states(key, ledger.encoded_state(key), found, ledger.clock_ms, finding)

    def _fold(
        self, ledger: Ledger, number: int, end: int, replies: _Replies, finding: Finding
    ) -> Iterator[int]:
        """Fold the log up to *end*, and say after each record which offset it had."""
        fault = fault_finder(number, self._partitions)
        for message in self._reading.read(CHECKS, number, ledger.next_offset, end, "error"):
            offset = message.offset()
            folded = fold(ledger, offset, message.timestamp()[1], message.value(), fault)
            finding.decisions += sum(answer is not None for answer in folded.answers)
            if isinstance(folded.record, Batch):
                for value in replies.get((folded.record.incarnation, folded.record.number), ()):
                    reply = decode_reply(value)
                    if reply.offset == offset:
                        _compare_answers(folded.answers, reply.answers, offset, finding)
            yield offset


def _compare_states(
    key: bytes, mine: bytes | None, theirs: bytes | None, clock_ms: int, finding: Finding
) -> None:
    finding.states += 1
    recomputed, stored = (_charges(value, clock_ms) for value in (mine, theirs))
    if recomputed != stored:
        name = key.decode(errors="replace").replace("\0", " / ")
        finding.note(f"counters of {name}: recomputed {recomputed}, stored {stored}")


def _compare_answers(
    mine: list[Answer], theirs: list[Decision | str | None], offset: int, finding: Finding
) -> None:
    if len(mine) != len(theirs):
        finding.note(f"offset {offset}: {len(mine)} checks, and {len(theirs)} answers in the reply")
        return
    for index, (answer, told) in enumerate(zip(mine, theirs, strict=True)):
        # What was held already, here or by the worker, had been answered before.
        if answer is None or told is None:
            continue
        finding.replies += 1
        if answer != told:
            finding.note(f"offset {offset}, check {index}: recomputed {answer}, the reply said {told}")


def _changes(
    base: PartitionStore, later: PartitionStore, table: str, recomputed: dict[bytes, bytes]
) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """Each key that was written or recomputed since the first marker, its value there, and its value now."""
    for key, value in later.items(table):
        before = base.get(table, key)
        newer = before is None or position_of(value) >= position_of(before)
        yield key, before, value if newer else before
    for key in recomputed:
        if later.get(table, key) is None:
            before = base.get(table, key)
            yield key, before, before


def _charges(value: bytes | None, clock_ms: int) -> dict[int, list[tuple[int, int]]]:
    """Ticks and counts in the window at *clock_ms*, by window length."""
    charges = {}
    for length, window in decode_state(value).windows.items() if value is not None else ():
        window.forget(clock_ms)
        if found := list(window.charges()):
            charges[length] = found
    return charges


def _same_history(mine: bytes | None, theirs: bytes | None) -> bool:
    """Whether both end alike: how much of its past a policy carries depends on when it was flushed."""
    one, other = (
        decode_history(value) if value is not None else list[PolicyChange]() for value in (mine, theirs)
    )
    shorter = min(len(one), len(other))
    return shorter == max(len(one), len(other)) or (shorter > 0 and one[-shorter:] == other[-shorter:])


def _new_store(number: int, folder: Path) -> PartitionStore:
    paths = {table: folder / f"{number}-{table}" for table in TABLES}
    folder.mkdir(exist_ok=True)
    return PartitionStore(number, lambda path: Rdict(str(path), Options(raw_mode=True)), paths)
