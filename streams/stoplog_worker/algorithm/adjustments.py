"""Charges and refunds that no limit judges: costs that become known after the request. Pure, as the fold.

Neither is covered by the guarantee that no interval admits more than the limit. A charge may exceed the
limits. A refund lets other requests pass in place of those that it returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from stoplog.policy import Limit
from stoplog.wire.holds import (
    CHARGE,
    MAX_REFUNDS,
    NOT_REFUNDABLE,
    REFUNDED_BEFORE,
    SAME_ID,
    Ask,
    Grant,
)
from stoplog_worker.algorithm.hold_set import REFUNDED, Hold, HoldSet
from stoplog_worker.algorithm.sliding_window import Windows
from stoplog_worker.algorithm.state_codec import State


class Adjusted(NamedTuple):
    """What became of a charge or a refund.

    Attributes:
        changed: Whether it changed the stored state.
        returned: Of a refund that was made now or before: the units that it returned in a window of the
            policy that was in force, the most of any, and 0.
        reason: Why a refund was not made, or not made again; else empty.
    """

    changed: bool
    returned: Grant | None = None
    reason: str = ""


NOT_ADJUSTED: Final = Adjusted(changed=False)


def adjust(state: State, windows: Windows, limits: Sequence[Limit], ask: Ask, now_ms: int) -> Adjusted:
    """Charge or return the units of *ask* in all *windows*.

    A refund reduces the newest charges, and never below 0. The windows are independent: one may return less
    than another. If the id of a refund is remembered, its repetitions change nothing for the longest of them.
    A window that is kept without a limit counts, too: its limit may come back. Beyond
    :data:`stoplog.wire.holds.MAX_REFUNDS`, the first refund is forgotten.

    Args:
        state: The client's state. Its ended holds are expired, and its policy is resolved. Its holds are
            changed in place.
        windows: The client's windows, changed in place; one for each limit, and perhaps one that is kept
            (:func:`stoplog_worker.algorithm.sliding_window.reshape`).
        limits: The limits of the policy in force, not empty.
        ask: A charge or a refund.
        now_ms: Partition time, ms since the Unix epoch.

    >>> from stoplog.wire.holds import REFUND
    >>> from stoplog_worker.algorithm.sliding_window import Window
    >>> state, windows, limits = State(refundable=True), {60_000: Window(60_000)}, [Limit(9, 60_000)]
    >>> adjust(state, windows, limits, Ask(CHARGE, (7, 1, 0), 0, 5, 1), 500_000).changed
    True
    >>> refund = Ask(REFUND, (7, 2, 0), 1, 3, 1)
    >>> adjust(state, windows, limits, refund, 500_000).returned, windows[60_000].total
    (Grant(units=3, ttl_ms=0), 2)
    >>> adjust(state, windows, limits, refund, 559_999).reason, windows[60_000].total
    ('the refund with this id was made before', 2)
    """
    if ask.kind == CHARGE:
        for window in windows.values() if ask.want else ():
            window.forget(now_ms)
            window.charge(now_ms, ask.want)
        return Adjusted(ask.want > 0)
    known = state.holds.get(ask.id) if state.holds is not None else None
    if known is not None:
        if known.kind != REFUNDED:
            return Adjusted(changed=False, reason=SAME_ID)
        return Adjusted(changed=False, returned=Grant(known.ask, 0), reason=REFUNDED_BEFORE)
    if not state.refundable:
        return Adjusted(changed=False, reason=NOT_REFUNDABLE)
    returned = {length: window.refund(now_ms, ask.want) for length, window in windows.items()}
    units = max([returned[limit.window_ms] for limit in limits])
    remembered = ask.number > 0 and ask.want > 0
    if remembered:
        # Remembered also if there was nothing to return: a repetition would return later charges.
        if state.holds is None:
            state.holds = HoldSet()
        state.holds.add(Hold(ask.id, REFUNDED, units, now_ms + max(windows), 0))
        state.holds.forget_refunds(MAX_REFUNDS)
    return Adjusted(any(returned.values()) or remembered, Grant(units, 0))
