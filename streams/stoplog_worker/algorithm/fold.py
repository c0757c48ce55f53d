"""One record of ``checks`` against the ledger of its partition. Pure: no Kafka, no clock, no I/O of its own.

:func:`fold` is the step of the fold, for the owner and for the oracle alike.

Nothing but the log enters a decision: the record, its position, partition time, and what earlier records
left in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from stoplog.errors import InvalidId, UndecodableRecord
from stoplog.policy import check_id
from stoplog.topics import partition_of
from stoplog.wire.checks import POSITION_BITS, Batch, Check, Denials, SingleCheck, decode_checks_record
from stoplog.wire.limit_updates import Update
from stoplog.wire.replies import Decision
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.sliding_window import decide, is_live, reshape
from stoplog_worker.algorithm.state_codec import Key, state_key

Answer = Decision | str | None
"""A decision; a text if this check cannot be judged; ``None`` if the ledger already held it."""


class Folded(NamedTuple):
    """What became of a record.

    ``record`` is ``None`` if it cannot be decoded, and ``refused`` then says why. ``answers`` are those to
    its checks, in their order. ``fresh``: it is an update that had not come by before.
    """

    record: Batch | Denials | SingleCheck | Update | None
    answers: list[Answer]
    fresh: bool = False
    refused: str = ""


def fold(
    ledger: Ledger, offset: int, stamp_ms: int, value: bytes | None, fault: Callable[[Check], str | None]
) -> Folded:
    """Take the record at *offset* into *ledger*: partition time moves, checks are judged, updates applied.

    Args:
        ledger: Of the record's partition, changed in place.
        offset: Of the record; not below ``ledger.next_offset``.
        stamp_ms: Its timestamp, the broker's.
        value: As it was read.
        fault: See :func:`judge`.
    """
    now_ms = ledger.advance(offset, stamp_ms)
    try:
        record = decode_checks_record(value)
    except UndecodableRecord as exc:
        return Folded(None, [], refused=exc.reason)
    if isinstance(record, Update):
        if record.kind in ("client", "reset"):
            reason = fault(Check(record.id, resource=record.resource))
            if reason is not None:
                return Folded(None, [], refused=reason)
        return Folded(record, [], fresh=ledger.apply(record, offset << POSITION_BITS))
    if isinstance(record, Denials):
        return Folded(record, [])
    return Folded(record, judge(ledger, offset, now_ms, record.checks, fault))


def judge(
    ledger: Ledger, offset: int, now_ms: int, checks: Sequence[Check], fault: Callable[[Check], str | None]
) -> list[Answer]:
    """Decide *checks*, one after the other, as the record at *offset* brought them.

    Args:
        ledger: Of the record's partition, changed in place.
        offset: Of the record in ``checks``.
        now_ms: Partition time at the record (:meth:`Ledger.advance`).
        checks: In the record's order.
        fault: Says why a check by a client not in memory cannot be judged here (:func:`fault_finder`).

    Returns:
        The answers in the order of *checks*.
    """
    states = ledger.states
    keys = [check.client if not check.resource else state_key(check) for check in checks]
    faults: dict[Key, str] = {}
    missing: dict[Key, None] = {}
    for key, check in zip(keys, checks, strict=True):
        if key not in states and key not in missing and key not in faults:
            reason = fault(check)
            if reason is None:
                missing[key] = None
            else:
                faults[key] = reason
    if missing:
        ledger.load(missing)

    policies = ledger.policies
    dirty, epoch = ledger.dirty, policies.epoch
    answers: list[Answer] = []
    position = (offset << POSITION_BITS) - 1
    for key, check in zip(keys, checks, strict=True):
        position += 1
        state = states.get(key)
        if state is None:
            answers.append(faults[key])
            continue
        if state.position >= position:
            answers.append(None)
            continue
        if state.epoch != epoch or state.plan != check.plan:
            reason = _plan_fault(check.plan)
            if reason is not None:
                answers.append(reason)
                continue
            policies.resolve(state, check, position)
        limits = state.policy.limits
        if not limits:
            answers.append(Decision(True, None, None, 0, 0, state.version))
            continue
        windows, cost = state.windows, check.cost
        live, changed = True, False
        if not state.shaped:
            live = is_live(windows, now_ms)
            if not live:
                # As if never seen, whatever is stored: so it need not be stored (stoplog_worker.state.expiry).
                windows = {}
            changed = reshape(windows, limits, now_ms)
            # With a window more than limits, one is kept until partition time has passed it by.
            state.shaped = live and len(windows) == len(limits)
        decision = decide(windows, limits, now_ms, cost, state.version)
        if (decision.allowed and cost) or (changed and live):
            state.windows = windows
            state.position = position
            dirty[key] = state
        answers.append(decision)
    return answers


def _plan_fault(plan: str) -> str | None:
    # Not a matter of the client, so not of whether its state is in memory.
    try:
        if plan:
            check_id(plan, "plan")
    except InvalidId as exc:
        return str(exc)
    return None


def fault_finder(partition: int, partitions: int) -> Callable[[Check], str | None]:
    """What makes a check's client or resource unfit for *partition* of *partitions*."""

    def fault(check: Check) -> str | None:
        try:
            check_id(check.client, "client_id")
            if check.resource:
                check_id(check.resource, "resource")
        except InvalidId as exc:
            return str(exc)
        right = partition_of(check.client, partitions)
        if right != partition:
            return (
                f"client {check.client!r} belongs to partition {right} and came to {partition}: hash client "
                f"ids as the Java client does (librdkafka: partitioner=murmur2_random) over {partitions}"
            )
        return None

    return fault
