"""Compare what was recomputed with what workers stored and answered, and count the differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from stoplog.wire.replies import Decision, HeldDecision, Settled, as_held
from stoplog_worker.algorithm.fold import Answer
from stoplog_worker.algorithm.hold_set import Hold
from stoplog_worker.algorithm.state_codec import (
    NEVER_SET,
    PolicyChange,
    decode_history,
    decode_state,
    position_of,
)
from stoplog_worker.state.store import PartitionStore

_MAX_DESCRIBED: Final = 10
"""Differences of a partition that are described; the others are only counted."""


class Finding(msgspec.Struct):
    """The result for one partition.

    Attributes:
        partition: The partition.
        start: Offset of the first marker.
        end: Offset of the later marker; equal to ``start`` if there was no later one.
        decisions: Decisions recomputed.
        replies: Recomputed decisions that were compared with a reply.
        states: States compared with the changelog.
        policies: Policies compared with the changelog.
        ahead: Policies not compared, because they changed after ``end``.
        differ: Differences between what was recomputed, and stored or answered.
        differences: Descriptions of the first differences.
        unverified: Why updates could not be verified: their relay keys are not known here.
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
    unverified: list[str] = msgspec.field(default_factory=list)

    def note_unverified(self, reason: str) -> None:
        """Note why an update could not be verified. The first reasons are kept."""
        if len(self.unverified) < _MAX_DESCRIBED:
            self.unverified.append(reason)

    def note(self, difference: str) -> None:
        """Count a difference."""
        self.differ += 1
        if len(self.differences) < _MAX_DESCRIBED:
            self.differences.append(difference)


def compare_states(
    finding: Finding, key: bytes, recomputed: bytes | None, stored: bytes | None, clock_ms: int
) -> None:
    """Compare the holds of two encoded states, and the charges that are in their windows at *clock_ms*."""
    finding.states += 1
    expected, found = _charges(recomputed, clock_ms), _charges(stored, clock_ms)
    if expected != found:
        finding.note(f"counters of {_name(key)}: recomputed {expected}, stored {found}")
        return
    holds = [_holds(value) for value in (recomputed, stored)]
    if holds[0] != holds[1]:
        finding.note(f"holds of {_name(key)}: recomputed {holds[0]}, stored {holds[1]}")
    newest = {decode_state(value).newest_ms for value in (recomputed, stored) if value is not None}
    newest.discard(0)  # a worker of an older version does not store it
    if expected and len(newest) > 1:
        finding.note(f"counters of {_name(key)}: recomputed and stored newest charge: {sorted(newest)}")


def _holds(value: bytes | None) -> list[Hold]:
    return list(decode_state(value).holds or ()) if value is not None else []


def compare_answers(
    finding: Finding,
    offset: int,
    recomputed: Sequence[Answer | Settled],
    answered: Sequence[Answer | Settled],
) -> None:
    """Compare the answers to the record at *offset* with those in a reply."""
    if len(recomputed) != len(answered):
        finding.note(f"offset {offset}: {len(recomputed)} checks, and {len(answered)} answers in the reply")
        return
    for index, (expected, found) in enumerate(zip(recomputed, answered, strict=True)):
        # A check that was applied already, here or by the worker, had been answered before.
        if expected is None or found is None:
            continue
        finding.replies += 1
        if isinstance(found, HeldDecision) and isinstance(expected, Decision):
            expected = as_held(expected)
        if expected != found:
            finding.note(f"offset {offset}, check {index}: recomputed {expected}, the reply was {found}")


def compare_policies(finding: Finding, key: bytes, recomputed: bytes | None, stored: bytes | None) -> None:
    """Compare two encoded policy histories. They may begin at different changes, but must end alike.

    How far back a stored history reaches depends on when it was written.
    """
    finding.policies += 1
    expected, found = _history(recomputed), _history(stored)
    shorter = min(len(expected), len(found))
    empty = shorter == 0 and bool(expected or found)
    if empty or (shorter > 0 and expected[-shorter:] != found[-shorter:]):
        name = key.decode(errors="replace").replace("\0", " ").strip()
        finding.note(f"limits of {name}: not those of the updates in the log")


def changed_entries(
    base: PartitionStore, later: PartitionStore, table: str, recomputed: dict[bytes, bytes]
) -> Iterator[tuple[bytes, bytes | None, bytes | None]]:
    """Yield each key of *table* that was written or recomputed after the first marker.

    Args:
        base: The entries at the first marker.
        later: The entries written since.
        table: The table.
        recomputed: The recomputed entries.

    Yields:
        The key, its value at the first marker, and its value now.
    """
    for key, value in later.items(table):
        before = base.get(table, key)
        newer = before is None or position_of(value) >= position_of(before)
        yield key, before, value if newer else before
    for key in recomputed:
        if later.get(table, key) is None:
            before = base.get(table, key)
            yield key, before, before


def _name(key: bytes) -> str:
    return key.decode(errors="replace").replace("\0", " / ")


def _charges(value: bytes | None, clock_ms: int) -> dict[int, list[tuple[int, int]]]:
    """Return the ticks and counts in the window at *clock_ms*, by window length."""
    charges = {}
    for length, window in decode_state(value).windows.items() if value is not None else ():
        window.forget(clock_ms)
        if found := list(window.charges()):
            charges[length] = found
    return charges


def _history(value: bytes | None) -> list[PolicyChange]:
    return [change for change in decode_history(value) if change != NEVER_SET] if value is not None else []
