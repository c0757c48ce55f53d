"""Holds of one client: units that were granted and are not spent yet. Pure: no clock, no I/O, integers only.

A hold counts in full, in every window, from its grant until it is settled or ends. From then on it is an
ordinary charge, made at that instant. The holder admits requests while the hold is open. So each admission
counts from before it was made until at least a window after it.

For each record of a client, the fold first ends the holds that are over (:func:`expire_holds`), then settles
(:func:`settle`, :func:`close_superseded`), and then judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stoplog.policy import Limit
from stoplog.wire.holds import (
    LEASE,
    MAX_LEASE_MS,
    MAX_LEASES,
    MAX_RESERVATIONS,
    MAX_SETTLED,
    MIN_LEASE_MS,
    NOT_OPEN,
    RESERVATION,
    SAME_ID,
    SETTLED_ID,
    SETTLED_NOW,
    TOO_MANY_RESERVATIONS,
    Ask,
    Grant,
    Settlement,
)
from stoplog.wire.replies import HeldDecision, Settled
from stoplog_worker.algorithm.hold_set import REFUNDED, SETTLED, Hold, HoldSet
from stoplog_worker.algorithm.sliding_window import Window, Windows
from stoplog_worker.algorithm.state_codec import State

MIN_LEASE: Final = 4
"""Units below which no lease is granted: it would cost more records than it saves."""

SHARE: Final = 2
"""A lease gets at most this part of the free units, again divided by the number of holds with it."""

_LEASES_PER_WINDOW: Final = 20
"""A lease lasts at most this part of the shortest window: its units count for so much longer."""

GENEROUS: Final = 64
"""The limits are *generous* to an ask if it could get so many times what it wants. The lease then holds back
next to nothing. It may have fewer than :data:`MIN_LEASE` units, and last longer."""

_GENEROUS_LEASES_PER_WINDOW: Final = 6
"""It lasts at most this part of the shortest window: 10 s of a minute."""


# --- the ends of holds ---


def expire_holds(state: State, now_ms: int) -> list[Hold]:
    """Charge the units of all holds that have ended by *now_ms*, each at its end; return these holds."""
    if state.holds is None:
        return []
    ended = state.holds.remove_ended(now_ms)
    for hold in ended:
        _charge(state, hold.end_ms, hold.units)
    _drop_if_empty(state)
    return ended


def settle(state: State, settlements: Sequence[Settlement], now_ms: int) -> Settled:
    """Charge what was used of holds, and close each, or shrink it if its settlement is partial.

    A settled reservation is remembered until it would have ended, so that a repeated settlement, or a late
    duplicate of its ask, changes nothing. Beyond :data:`MAX_SETTLED`, the one settled first is forgotten.

    Args:
        state: The state, changed in place. Its ended holds are expired.
        settlements: The settlements, made one after the other.
        now_ms: Partition time, ms since the Unix epoch.

    Returns:
        The answer to each settlement. If its hold was not open, nothing changes.
    """
    holds = state.holds
    if holds is None:
        return (NOT_OPEN,) * len(settlements)
    settled = []
    for settlement in settlements:
        hold = holds.get(settlement.id)
        if hold is None or hold.kind == REFUNDED:
            settled.append(NOT_OPEN)
            continue
        if hold.kind == SETTLED:
            settled.append(hold.ask)
            continue
        settled.append(SETTLED_NOW)
        _charge(state, now_ms, settlement.used)
        if settlement.partial:
            holds.shrink(hold.id, max(0, hold.units - settlement.used))
        else:
            holds.remove(hold.id)
            if hold.kind == RESERVATION:
                holds.add(Hold(hold.id, SETTLED, settlement.used, hold.end_ms, 0))
                holds.forget_settled(MAX_SETTLED)
    _drop_if_empty(state)
    return tuple(settled)


def close_superseded(state: State, ask: Ask) -> bool:
    """Close the leases that an ask for another lease gives back; return whether there was any.

    These are the leases of the same holder with a smaller number of their ask that *ask* does not name. A
    late ask has a small number, and so does not close a lease that is in use.
    """
    if state.holds is None:
        return False
    earlier = [
        lease.id for lease in state.holds.leases if lease.id[0] == ask.id[0] and lease.ask < ask.number
    ]
    closed = set(earlier).difference(ask.keep)  # each may have MAX_LEASES ids
    for id_ in closed:
        state.holds.remove(id_)
    _drop_if_empty(state)
    return bool(closed)


def _drop_if_empty(state: State) -> None:
    if not state.holds:
        state.holds = None


def _charge(state: State, at_ms: int, units: int) -> None:
    if units and state.windows:
        for window in state.windows.values():
            # What is dropped from the lists depends on the time of the charge only.
            window.forget(at_ms)
            window.charge(at_ms, units)
        state.newest_ms = max(state.newest_ms, at_ms)


# --- grants ---


def _in_flight(most: int) -> str:
    """Return the reason of a denial by the limit of *most* requests in flight."""
    if not most:
        return "the limit is 0 in flight, which allows no reservations: raise it"
    return f"{most:,} reservations are open, and the limit is {most:,} in flight: settle one of them first"


def lease_for(
    holds: HoldSet, windows: Windows, limits: Sequence[Limit], ask: Ask, now_ms: int
) -> Hold | None:
    """Return the lease to grant to *ask*, whose check has been allowed and charged; ``None`` for none.

    Args:
        holds: The client's holds.
        windows: The client's windows.
        limits: The limits of the policy in force, longest window first, not empty.
        ask: The ask. No hold with its id is open.
        now_ms: Partition time, ms since the Unix epoch.
    """
    leases = holds.leases
    if len(windows) != len(limits) or len(leases) >= MAX_LEASES:
        return None  # a window without a limit is kept: its limit may come back and deny
    if any(lease.id[0] == ask.id[0] and lease.ask == ask.number for lease in leases):
        return None
    free = min(limit.max - windows[limit.window_ms].total for limit in limits) - holds.units
    most = free // (SHARE * (holds.open + 1))
    generous = ask.want * GENEROUS <= most
    units = min(ask.want, most)
    part = _GENEROUS_LEASES_PER_WINDOW if generous else _LEASES_PER_WINDOW
    ttl_ms = min(ask.ttl_ms, limits[-1].window_ms // part, MAX_LEASE_MS)
    if units < (1 if generous else MIN_LEASE) or ttl_ms < MIN_LEASE_MS:
        return None
    return Hold(ask.id, LEASE, ask.number, now_ms + ttl_ms, units)


# --- decisions ---


def decide_with_holds(
    state: State,
    windows: Windows,
    limits: Sequence[Limit],
    now_ms: int,
    cost: int,
    *,
    ask: Ask | None,
) -> HeldDecision:
    """Charge or reserve *cost* if all *limits* allow it beside the open holds; grant what *ask* asks for.

    This is :func:`stoplog_worker.algorithm.sliding_window.decide` for states with holds, and for asks. A
    denial changes nothing.

    Args:
        state: The state; its holds may be extended. Its ended holds are expired, and settlements are made.
        windows: The client's windows, changed in place; one for each limit
            (:func:`stoplog_worker.algorithm.sliding_window.reshape`).
        limits: The limits of the policy in force, longest window first. They are empty only if a reservation
            is asked for, and the policy has no limit with a window, only one on requests in flight
            (``state.in_flight``).
        now_ms: Partition time, ms since the Unix epoch.
        cost: Requests to charge, or units to reserve.
        ask: The hold that is asked for.

    Returns:
        The decision. ``retry_after_ms`` and ``reset_after_ms`` assume that every hold ends unsettled.
    """
    holds = state.holds if state.holds is not None else HoldSet()
    known = holds.get(ask.id) if ask is not None else None
    reserving = ask is not None and ask.kind == RESERVATION
    held = holds.units
    reason, blocked_until_ms = "", now_ms
    never = False
    if known is not None and ask is not None and known.kind != ask.kind:
        reason = SETTLED_ID if known.kind == SETTLED else SAME_ID
        blocked_until_ms = known.end_ms
    elif reserving and known is None:
        most = MAX_RESERVATIONS if state.in_flight is None else state.in_flight
        surplus = holds.reservations - most
        if surplus >= 0:
            reason = TOO_MANY_RESERVATIONS if state.in_flight is None else _in_flight(most)
            never = not most
            blocked_until_ms = holds.reservation_ends_ms(surplus) if most else now_ms
    allowed, free_at_ms, firm_at_ms = not reason, blocked_until_ms, now_ms
    for limit in limits if known is None or not reserving else ():
        window = windows[limit.window_ms]
        window.forget(now_ms)
        excess = cost + held + window.total - limit.max
        if excess > 0:
            allowed = False
            if cost > limit.max:
                never = True
                continue
            free_at_ms = max(free_at_ms, _free_at_ms(window, holds, excess))
            if excess > held:
                firm_at_ms = max(firm_at_ms, window.free_at_ms(excess - held))
    grant = None
    if allowed and reserving:
        if known is None:
            assert ask is not None
            known = Hold(ask.id, RESERVATION, 0, now_ms + ask.ttl_ms, cost)
            holds.add(known)
        grant = Grant(known.units, known.end_ms - now_ms)
    elif allowed:
        if cost:
            for window in windows.values():
                window.forget(now_ms)
                window.charge(now_ms, cost)
        if ask is not None:
            if known is None:
                known = lease_for(holds, windows, limits, ask, now_ms)
                if known is not None:
                    holds.add(known)
            if known is not None:
                grant = Grant(known.units, known.end_ms - now_ms)
    if holds:
        state.holds = holds
    return HeldDecision(
        allowed,
        *_numbers(windows, limits, holds, now_ms),
        None if never else free_at_ms - now_ms,
        state.version,
        # A denial with a reason is no denial of a check that reserves nothing, which the deny cache would
        # make of it. If the policy is refundable, the next refund may end a denial.
        0 if reason else None if never else 0 if state.refundable else firm_at_ms - now_ms,
        grant,
        reason=reason,
    )


def _numbers(
    windows: Windows, limits: Sequence[Limit], holds: HoldSet, now_ms: int
) -> tuple[int | None, int | None, int]:
    """Return ``limit``, ``remaining`` and ``reset_after_ms`` of the limit with the fewest units left."""
    if not limits:
        return None, None, 0
    left, nearest, maximum = 0, None, 0
    for limit in limits:
        window = windows[limit.window_ms]
        window.forget(now_ms)
        free = limit.max - window.total - holds.units
        if nearest is None or free < left:
            left, nearest, maximum = free, window, limit.max
    assert nearest is not None
    last_ms = nearest.leave_ms[-1] if nearest.total else now_ms
    if holds.units:
        last_ms = max(last_ms, nearest.leaves_ms(holds.charged_last_ms()))
    return maximum, max(0, left), last_ms - now_ms


def _free_at_ms(window: Window, holds: HoldSet, excess: int) -> int:
    """Return when at least *excess* of the charges and holds will have left, if the holds end unsettled.

    *excess* is 1 to the sum of both. What has ended in *window* is forgotten.
    """
    if excess <= window.total:
        return window.free_at_ms(excess)
    # A hold is charged later than everything in the window, and leaves it later or at the same time.
    return window.leaves_ms(holds.charged_ms(excess - window.total))
