"""Apply one record of ``checks`` to the ledger of its partition. Pure: no Kafka, no clock, no I/O of its own.

:func:`fold` is one step of the fold. The partition's owner and the oracle (``stoplog verify``) both use it.

Nothing but the log enters a decision: the record, its position, partition time, and what earlier records left
in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from stoplog.errors import InvalidId, UndecodableRecord
from stoplog.partitioning import partition_of
from stoplog.policy import check_id
from stoplog.wire.checks import POSITION_BITS, Batch, Check, Denials, SingleCheck, decode_checks_record
from stoplog.wire.holds import (
    CHARGE,
    LEASE,
    REFUND,
    RESERVATION,
    SETTLED_NOW,
    HoldRow,
    SettlementBatch,
    SettlementRow,
)
from stoplog.wire.limit_updates import Update
from stoplog.wire.replies import Decision, HeldDecision, Settled
from stoplog_worker.algorithm.adjustments import NOT_ADJUSTED, adjust
from stoplog_worker.algorithm.holds import close_superseded, decide_with_holds, settle
from stoplog_worker.algorithm.ledger import GRANTED, Ledger, UpdateEffect
from stoplog_worker.algorithm.sliding_window import decide, is_live, reshape
from stoplog_worker.algorithm.state_codec import Key, State, state_key
from stoplog_worker.algorithm.update_authority import WITHOUT_KEYS, Refusal, UpdateAuthority

Answer = Decision | str | None
"""A decision; the reason why the check cannot be decided; or ``None`` if the ledger already held the check.
"""

_NOT_ENABLED: Final = "holds are not enabled in this partition: a worker of an older version may be running"

_NO_HOLD: Final = HoldRow(0)


class Folded(NamedTuple):
    """The outcome of a record.

    Attributes:
        record: The decoded record; ``None`` if it was refused.
        answers: The answers to its checks, in their order.
        settled: The answers to its rows of settlements, in their order: for each settlement, what became of
            its hold; the reason why the row cannot be applied; or ``None`` if the ledger already held it.
        effect: The effect of an update; ``None`` if it was applied before, and for other records.
        refused: Why the record was refused; empty if it was not.
        refusal: Why an update was refused for lack of authority; ``None`` if it was not.
    """

    record: Batch | Denials | SettlementBatch | SingleCheck | Update | None
    answers: list[Answer]
    effect: UpdateEffect | None = None
    refused: str = ""
    refusal: Refusal | None = None
    settled: Sequence[Settled | str | None] = ()


def fold(
    ledger: Ledger,
    offset: int,
    stamp_ms: int,
    value: bytes | None,
    fault: Callable[[Check], str | None],
    authority: UpdateAuthority = WITHOUT_KEYS,
) -> Folded:
    """Apply the record at *offset* to *ledger*: advance partition time, decide checks, apply updates.

    A record that cannot be decoded, an update for a client of another partition, or an update without
    authority is refused. Partition time advances with it all the same.

    Args:
        ledger: The ledger of the record's partition, changed in place.
        offset: The record's offset, at least ``ledger.next_offset``.
        stamp_ms: The record's timestamp, set by the broker, ms since the Unix epoch.
        value: The record's value.
        fault: See :func:`judge`.
        authority: Verifies updates.

    Returns:
        The decoded record with its answers, or the reason why it was refused.

    >>> from stoplog.policy import parse_policy
    >>> from stoplog.wire.checks import encode_batch
    >>> from stoplog_worker.algorithm.state_codec import Marker
    >>> from stoplog_worker.verify.replay import NothingStored
    >>> ledger = Ledger(NothingStored(), Marker(0, 0, -1, -1, "", parse_policy("2/minute")))
    >>> batch = encode_batch(Batch(0, 7, 1, [Check("alice"), Check("alice", cost=2), Check("alice")]))
    >>> folded = fold(ledger, 0, 500_000, batch, fault_finder(0, 1))
    >>> [(answer.allowed, answer.remaining) for answer in folded.answers]
    [(True, 1), (False, 1), (True, 0)]
    >>> fold(ledger, 1, 500_001, b"noise", fault_finder(0, 1)).record is None, ledger.next_offset
    (True, 2)
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
        refusal = authority.refusal(record, ledger.applied, signed_before=ledger.signed_from >= 0)
        if refusal is not None:
            return Folded(None, [], refused=refusal.reason, refusal=refusal)
        if record.signature is not None and ledger.signed_from < 0:
            ledger.signed_from = offset
        return Folded(record, [], effect=ledger.apply(record, offset << POSITION_BITS))
    if isinstance(record, Denials):
        return Folded(record, [])
    rows = record.hold_rows if isinstance(record, Batch) else None
    if rows is not None or isinstance(record, SettlementBatch):
        if not ledger.policies.holds_enabled(offset << POSITION_BITS):
            return Folded(None, [], refused=_NOT_ENABLED)
        if isinstance(record, SettlementBatch):
            return Folded(record, [], settled=_settle_all(ledger, offset, now_ms, record.rows, fault))
    return Folded(record, judge(ledger, offset, now_ms, record.checks, fault, rows))


def judge(
    ledger: Ledger,
    offset: int,
    now_ms: int,
    checks: Sequence[Check],
    fault: Callable[[Check], str | None],
    hold_rows: Sequence[HoldRow] | None = None,
) -> list[Answer]:
    """Decide *checks*, one after the other, in the order of the record at *offset*.

    Args:
        ledger: The ledger of the record's partition, changed in place.
        offset: The record's offset in ``checks``.
        now_ms: Partition time at the record (:meth:`Ledger.advance`), ms since the Unix epoch.
        checks: The record's checks, in its order.
        fault: Returns why a check cannot be decided in this partition, or ``None`` (:func:`fault_finder`).
            Called for clients that are not in memory.
        hold_rows: Asks and settlements, by ascending index of their check. ``None`` in a record of format
            version 1: a decision then has no fields about holds.

    Returns:
        The answers, in the order of *checks*.
    """
    keys = [check.client if not check.resource else state_key(check) for check in checks]
    faults = _load(ledger, keys, checks, fault)
    answers: list[Answer] = []
    position = offset << POSITION_BITS
    with_holds = hold_rows is not None
    begin = 0
    for row in hold_rows or ():
        end = row.index
        _decide_all(
            ledger, position + begin, now_ms, keys[begin:end], checks[begin:end], faults, answers, with_holds
        )
        key, check, state = keys[end], checks[end], ledger.states.get(keys[end])
        if state is None:
            answers.append(faults[key])
        elif state.position >= position + end:
            answers.append(None)
        else:
            _expire(ledger, position + end, key, state)
            answers.append(_decide_held(ledger, position + end, now_ms, key, check, state, row))
        begin = end + 1
    if begin:
        keys, checks = keys[begin:], checks[begin:]
    _decide_all(ledger, position + begin, now_ms, keys, checks, faults, answers, with_holds)
    return answers


def _load(
    ledger: Ledger,
    keys: Sequence[Key],
    checks: Sequence[Check],
    fault: Callable[[Check], str | None],
) -> dict[Key, str]:
    """Load the states of *keys*; return the reasons why some cannot be decided here."""
    states = ledger.states
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
    return faults


def _decide_all(
    ledger: Ledger,
    position: int,
    now_ms: int,
    keys: Sequence[Key],
    checks: Sequence[Check],
    faults: dict[Key, str],
    answers: list[Answer],
    with_holds: bool,
) -> None:
    """Decide *checks*, which ask and settle nothing, from *position* on; append to *answers*.

    Unless *with_holds*, the sender does not know the fields about holds, and the decisions have none.
    """
    states, policies = ledger.states, ledger.policies
    dirty, epoch = ledger.dirty, policies.epoch
    position -= 1
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
            # A state whose holds have ended decides like one without: it may have been dropped meanwhile.
            _expire(ledger, position, key, state)
            if state.holds is None:
                reason = _plan_fault(check.plan)
                if reason is not None:
                    answers.append(reason)
                    continue
                policies.resolve(state, check, position)
            if state.holds is not None or state.refundable:
                answer = _decide_held(ledger, position, now_ms, key, check, state, _NO_HOLD)
                if not with_holds and isinstance(answer, Decision):
                    answer = Decision(*(getattr(answer, name) for name in Decision.__struct_fields__))
                answers.append(answer)
                continue
        limits = state.limits
        if not limits:
            answers.append(Decision(True, None, None, 0, 0, state.version))
            continue
        windows, cost = state.windows, check.cost
        live, changed = True, False
        if not state.shaped:
            live = is_live(windows, now_ms)
            if not live:
                # A state without live charges decides like a new client's, whatever is stored. So it need not
                # be stored (stoplog_worker.state.expiry).
                windows = {}
            changed = reshape(windows, limits, now_ms, state.newest_ms)
            # A window that no limit uses any more is dropped by a later reshape(), at its own time.
            state.shaped = live and len(windows) == len(limits)
        decision = decide(windows, limits, now_ms, cost, state.version)
        answers.append(decision)
        if decision.allowed and cost:
            state.newest_ms = now_ms
        elif not (changed and live):
            continue
        if not live:
            state.windows = windows
        state.position = position
        dirty[key] = state


def _decide_held(
    ledger: Ledger, position: int, now_ms: int, key: Key, check: Check, state: State, row: HoldRow
) -> Answer:
    """Decide a check whose client has holds or may get refunds, or that asks or settles.

    Holds that are over were ended.
    """
    policies, ask = ledger.policies, row.ask
    settled = _settle(ledger, position, now_ms, key, state, row)
    reason = _plan_fault(check.plan)
    if reason is not None:
        return reason
    policies.resolve(state, check, position)
    if state.holds is not None or state.refundable:
        state.epoch = -1
    adjustment = ask if ask is not None and ask.kind in (CHARGE, REFUND) else None
    if adjustment is not None:
        ask = None
    limits, reserving = state.limits, ask is not None and ask.kind == RESERVATION
    if not limits and (state.in_flight is None or not reserving):
        return HeldDecision(True, None, None, 0, 0, state.version, 0, settled=settled)
    live = state.holds is not None or is_live(state.windows, now_ms)
    # A state without live charges may have been dropped: nothing that is stored may depend on it.
    windows, newest_ms = (state.windows, state.newest_ms) if live else ({}, 0)
    longest_ms = max(windows, default=0)
    changed = bool(limits) and reshape(windows, limits, now_ms, newest_ms)
    if changed and state.holds is not None and max(windows) > longest_ms:
        # The longer window has taken over charges that a repeated refund could return again.
        state.holds.keep_refunds(now_ms + max(windows))
    state.shaped = live and len(windows) == len(limits)
    holds_before = len(state.holds or ())
    adjusted = NOT_ADJUSTED
    if adjustment is not None:
        adjusted = adjust(state, windows, limits, adjustment, now_ms)
        ledger.unjudged = ledger.unjudged or (adjusted.changed and adjustment.kind == CHARGE)
    decision = decide_with_holds(state, windows, limits, now_ms, check.cost, ask=ask)
    if ask is not None and len(state.holds or ()) > holds_before:
        assert decision.grant is not None
        ledger.hold_counts[ask.kind, GRANTED] += 1 if reserving else decision.grant.units
    charged = decision.allowed and check.cost and not reserving
    if adjustment is not None:
        charged = charged or (adjusted.changed and adjustment.kind == CHARGE)
        decision = msgspec.structs.replace(
            decision,
            allowed=True,
            retry_after_ms=0,
            firm_ms=0,
            grant=adjusted.returned,
            reason=adjusted.reason,
        )
    if charged:
        newest_ms = now_ms
    if charged or adjusted.changed or holds_before != len(state.holds or ()) or (changed and live):
        state.windows, state.newest_ms = windows, newest_ms
        _changed(ledger, key, state, position)
    if settled:
        decision = msgspec.structs.replace(decision, settled=settled)
    return decision


def _settle(
    ledger: Ledger, position: int, now_ms: int, key: Key, state: State, row: HoldRow | SettlementRow
) -> Settled:
    """Make the settlements of *row*, and close what its ask gives back."""
    held = _units(state)
    settled = settle(state, row.settlements, now_ms)
    if settled:
        answers = zip(row.settlements, settled, strict=True)
        used = sum(settlement.used for settlement, answer in answers if answer == SETTLED_NOW)
        ledger.unjudged = ledger.unjudged or used > held - _units(state)
    closed = isinstance(row, HoldRow) and row.ask is not None and row.ask.kind == LEASE
    if closed:
        assert isinstance(row, HoldRow)
        assert row.ask is not None
        closed = close_superseded(state, row.ask)
    if closed or SETTLED_NOW in settled:
        _changed(ledger, key, state, position)
    return settled


def _units(state: State) -> int:
    return state.holds.units if state.holds is not None else 0


def _settle_all(
    ledger: Ledger,
    offset: int,
    now_ms: int,
    rows: Sequence[SettlementRow],
    fault: Callable[[Check], str | None],
) -> list[Settled | str | None]:
    """Apply the *rows* of a record of settlements."""
    checks = [Check(row.client, 0, "", row.resource) for row in rows]
    keys = [state_key(check) for check in checks]
    faults = _load(ledger, keys, checks, fault)
    answers: list[Settled | str | None] = []
    for position, (key, row) in enumerate(zip(keys, rows, strict=True), offset << POSITION_BITS):
        state = ledger.states.get(key)
        if state is None:
            answers.append(faults[key])
        elif state.position >= position:
            answers.append(None)
        else:
            _expire(ledger, position, key, state)
            answers.append(_settle(ledger, position, now_ms, key, state, row))
    return answers


def _expire(ledger: Ledger, position: int, key: Key, state: State) -> None:
    """End the holds of *state* that are over."""
    if state.holds is not None and ledger.expire_holds(state):
        _changed(ledger, key, state, position)


def _changed(ledger: Ledger, key: Key, state: State, position: int) -> None:
    """Note that the check at *position* has changed the stored part of *state*."""
    state.position = position
    if state.holds is not None:
        state.epoch = -1  # the next check of the client takes the way that knows holds
    ledger.dirty[key] = state


def _plan_fault(plan: str) -> str | None:
    # Separate from fault_finder(): a plan may be invalid although the client's state is in memory.
    try:
        if plan:
            check_id(plan, "plan")
    except InvalidId as exc:
        return str(exc)
    return None


def fault_finder(partition: int, partitions: int) -> Callable[[Check], str | None]:
    """Return a function: why a check cannot be decided in *partition* of *partitions*, or ``None``.

    Invalid ids, and a client that another partition owns, are faults.

    >>> fault_finder(0, 1)(Check("alice")) is None
    True
    """

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
                f"client {check.client!r} belongs to partition {right} and was sent to {partition}: hash "
                f"client ids as the Java client does (librdkafka: partitioner=murmur2_random) over "
                f"{partitions} partitions"
            )
        return None

    return fault
