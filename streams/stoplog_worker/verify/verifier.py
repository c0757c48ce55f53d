"""Verify a running system: the state at a marker and the log after it must give the state at a later marker.

For each partition, the changelogs are read to their end. That gives a first marker and the state there. When
the owner has written a later marker, the log between the two is folded over that state
(:func:`stoplog_worker.algorithm.fold.fold`). The result is compared with what the owner wrote in the meantime
and with the replies to API callers. Nothing is written to any topic, and no group is joined.

States may be ahead of the marker that they are read with. The fold skips checks that a state at the first
marker already contains, as a worker does after a crash. For a state ahead of the later marker, the fold
continues up to that state's position. Entries from before the first marker are on disk, in a folder that the
caller provides. Clients seen and replies sent between the markers are held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from time import monotonic, sleep
from typing import Final

import msgspec
from rocksdict import Options, Rdict

from stoplog.errors import Unavailable, UndecodableRecord
from stoplog.topics import CHECKS, REPLIES, TopicSpec
from stoplog.wire.checks import POSITION_BITS, Batch
from stoplog.wire.holds import SettlementBatch
from stoplog.wire.replies import decode_any_reply
from stoplog_worker.algorithm.fold import fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.relay_keys import RelayKeys
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, position_of
from stoplog_worker.algorithm.update_authority import UNKNOWN_KEY, UpdateAuthority
from stoplog_worker.kafka.progress_reader import ProgressReader
from stoplog_worker.restore.merge_changelog import merge_changelog, read_marker
from stoplog_worker.state.store import COUNTERS, POLICIES, TABLES, PartitionStore
from stoplog_worker.verify.compare import (
    Finding,
    changed_entries,
    compare_answers,
    compare_policies,
    compare_states,
)

_CHECKPOINT_S: Final = 75.0
"""Seconds to wait for a checkpoint: more than the longest interval allowed."""
_POLL_S: Final = 0.1

_Replies = dict[tuple[int, int], list[bytes]]
"""Encoded replies by incarnation and number of their batch."""


class Verifier:
    """Verifies all partitions of a running system: :meth:`begin`, wait, :meth:`finish`.

    Args:
        reader: Reads the topics.
        specs: The topics.
        changelogs: The changelog topic of each table.
        folder: An empty folder for the content of the changelogs.
        keys: The workers' relay keys.
    """

    def __init__(
        self,
        reader: ProgressReader,
        specs: dict[str, TopicSpec],
        changelogs: dict[str, str],
        folder: Path,
        keys: RelayKeys,
    ) -> None:
        self._reader = reader
        self._keys = keys
        self._partitions = range(specs[CHECKS].partitions)
        self._changelogs = changelogs
        self._reply_starts = {
            partition: reader.offset_range(REPLIES, partition)[1]
            for partition in range(specs[REPLIES].partitions)
        }
        self._bases = [_new_store(partition, folder / "base") for partition in self._partitions]
        """Entries at the first markers."""
        self._laters = [_new_store(partition, folder / "later") for partition in self._partitions]
        """Entries written after them."""
        for store in (*self._bases, *self._laters):
            store.log_end = partial(self._log_end, store.partition)

    def _log_end(self, partition: int) -> int:
        return self._reader.offset_range(CHECKS, partition)[1]

    def begin(self) -> None:
        """Read the changelogs to their present ends: the first markers, and the states there."""
        ends = [self._ends(partition) for partition in self._partitions]
        for partition, store in enumerate(self._bases):
            for table in TABLES:
                end = ends[partition][table]
                self._merge_whole(store, table, end)
                self._laters[partition].next_offset[table] = store.next_offset[table] = end

    def finish(self) -> list[Finding]:
        """Wait for later markers, recompute and compare.

        Returns:
            A finding for each partition.

        Raises:
            Unavailable: the log has new records, but no worker has made a checkpoint.
            OffsetGone: the log no longer holds the records after a first marker.
        """
        markers = [self._wait_for_marker(partition) for partition in self._partitions]
        replies = self._read_replies()
        return [self._compare(partition, marker, replies) for partition, marker in enumerate(markers)]

    def close(self) -> None:
        """Close the stores. The folder may then be removed."""
        for store in (*self._bases, *self._laters):
            store.close()

    # --- reading ---

    def _ends(self, partition: int) -> dict[str, int]:
        # Policies first: every state below a marker found there is then below the counters' end.
        return {
            table: self._reader.offset_range(self._changelogs[table], partition)[1]
            for table in (POLICIES, COUNTERS)
        }

    def _merge_whole(self, store: PartitionStore, table: str, end: int) -> None:
        """Store the changelog up to *end* in *store*, which is empty."""
        topic, partition = self._changelogs[table], store.partition
        while True:
            begin, _ = self._reader.offset_range(topic, partition)
            self._merge(store, table, end)
            if self._reader.offset_range(topic, partition)[0] == begin:
                return
            # The owner has shortened the changelog meanwhile. The deleted records may have replaced some of
            # those read.
            store.clear_counters()

    def _merge(self, store: PartitionStore, table: str, end: int, below: int | None = None) -> None:
        """Store the changelog up to *end* in *store*; with *below*, only entries of lower positions."""
        merge_changelog(self._reader, self._changelogs[table], store, table, end, below)

    def _wait_for_marker(self, partition: int) -> Marker | None:
        """Wait for a later marker, and read both changelogs up to it; ``None`` if the log has not moved."""
        later, first = self._laters[partition], self._bases[partition].marker()
        give_up_at = monotonic() + _CHECKPOINT_S
        while True:
            low, high = self._reader.offset_range(CHECKS, partition)
            start = first.next_offset if first else low
            ends = self._ends(partition)
            marker = self._last_marker(partition, ends[POLICIES])
            if marker is not None and marker.next_offset > start:
                break
            if high <= start:
                return None
            if monotonic() > give_up_at:
                raise Unavailable(
                    f"{CHECKS}[{partition}] has records from offset {start} on, and no worker has made a "
                    f"checkpoint in {_CHECKPOINT_S:.0f} s: see that a worker runs and owns the partition "
                    f"(`stoplog status`)"
                )
            sleep(_POLL_S)
        below = marker.next_offset << POSITION_BITS
        self._merge(later, COUNTERS, ends[COUNTERS])
        self._merge(later, POLICIES, ends[POLICIES], below)
        return marker

    def _last_marker(self, partition: int, end: int) -> Marker | None:
        start = self._laters[partition].next_offset[POLICIES]
        return read_marker(self._reader, self._changelogs[POLICIES], partition, start, end)

    def _read_replies(self) -> _Replies:
        replies: _Replies = {}
        for partition, start in self._reply_starts.items():
            _, end = self._reader.offset_range(REPLIES, partition)
            for message in self._reader.read(REPLIES, partition, start, end):
                value = message.value() or b""
                try:
                    reply = decode_any_reply(value)
                except UndecodableRecord:
                    continue  # the JSON reply to a single check, or a foreign record
                replies.setdefault((reply.incarnation, reply.number), []).append(value)
        return replies

    # --- comparing ---

    def _compare(self, partition: int, marker: Marker | None, replies: _Replies) -> Finding:
        base, later = self._bases[partition], self._laters[partition]
        first = base.marker()
        if marker is None:
            offset = first.next_offset if first else 0
            return Finding(partition, offset, offset)
        if first is None:
            low, _ = self._reader.offset_range(CHECKS, partition)
            first = Marker(low, 0, -1, -1, marker.topic_id, marker.default)
        # An older worker, or a new lane's copy, may have written the marker without these ids.
        first = msgspec.structs.replace(
            first,
            updates_id=first.updates_id or marker.updates_id,
            changelog_ids=first.changelog_ids or marker.changelog_ids,
        )
        finding = Finding(partition, first.next_offset, marker.next_offset)
        ledger = Ledger(base, first)
        for _ in self._fold(ledger, partition, marker.next_offset, replies, finding):
            pass  # the fold fills the finding
        recomputed, entries = ledger.take_dirty()
        if recomputed != marker:
            finding.note(f"the marker: recomputed {recomputed}, stored {marker}")
        ahead = marker.next_offset << POSITION_BITS
        counters = dict(entries.counters)
        beyond: dict[int, list[tuple[bytes, bytes]]] = {}
        for key, before, stored in changed_entries(base, later, COUNTERS, counters):
            if stored is not None and position_of(stored) >= ahead:
                beyond.setdefault(position_of(stored) >> POSITION_BITS, []).append((key, stored))
            else:
                compare_states(finding, key, counters.get(key, before), stored, marker.clock_ms)
        policies = dict(entries.policies)
        for key, before, stored in changed_entries(base, later, POLICIES, policies):
            value = policies.get(key, before)
            if key == MARKER_KEY:
                continue
            if any(each is not None and position_of(each) >= ahead for each in (value, stored)):
                finding.ahead += 1
            else:
                compare_policies(finding, key, value, stored)
        self._compare_beyond(ledger, partition, beyond, replies, finding)
        return finding

    def _compare_beyond(
        self,
        ledger: Ledger,
        partition: int,
        beyond: dict[int, list[tuple[bytes, bytes]]],
        replies: _Replies,
        finding: Finding,
    ) -> None:
        """Continue the fold up to the states that are ahead of the marker, which are given by offset."""
        if not beyond:
            return
        _, high = self._reader.offset_range(CHECKS, partition)
        for offset in self._fold(ledger, partition, min(max(beyond) + 1, high), replies, finding):
            for key, stored in beyond.pop(offset, ()):
                compare_states(finding, key, ledger.encoded_state(key), stored, ledger.clock_ms)
        # The log holds no record at the offsets of the rest.
        for key, stored in chain.from_iterable(beyond.values()):
            compare_states(finding, key, ledger.encoded_state(key), stored, ledger.clock_ms)

    def _fold(
        self, ledger: Ledger, partition: int, end: int, replies: _Replies, finding: Finding
    ) -> Iterator[int]:
        """Fold the log up to *end*; yield the offset of each record after it was applied."""
        fault = fault_finder(partition, len(self._partitions))
        marker = ledger.checkpointed
        authority = UpdateAuthority(self._keys, marker.topic_id, marker.updates_id, partition)
        for message in self._reader.read(CHECKS, partition, ledger.next_offset, end, "error"):
            offset = message.offset()
            folded = fold(ledger, offset, message.timestamp()[1], message.value(), fault, authority)
            if folded.refusal is not None and folded.refusal.kind == UNKNOWN_KEY:
                finding.note_unverified(folded.refused)
            finding.decisions += sum(answer is not None for answer in folded.answers)
            if isinstance(folded.record, Batch | SettlementBatch):
                for value in replies.get((folded.record.incarnation, folded.record.number), ()):
                    reply = decode_any_reply(value)
                    if reply.offset == offset:
                        compare_answers(finding, offset, folded.answers or folded.settled, reply.answers)
            yield offset


def _new_store(partition: int, folder: Path) -> PartitionStore:
    paths = {table: folder / f"{partition}-{table}" for table in TABLES}
    folder.mkdir(exist_ok=True)
    return PartitionStore(partition, lambda path: Rdict(str(path), Options(raw_mode=True)), paths)
