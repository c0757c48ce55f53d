"""Charges and refunds that no limit judges: costs that become known after the request. Pure, as the fold.

Neither is covered by the guarantee that no interval admits more than the limit. A charge may exceed the
limits. A refund lets other requests pass in place of those that it returns.
"""

from __future__ import annotations

from stoplog.wire.holds import CHARGE, NOT_REFUNDABLE, Ask
from stoplog_worker.algorithm.sliding_window import Windows


def adjust(windows: Windows, ask: Ask, now_ms: int, *, refundable: bool) -> tuple[bool, str]:
    """Charge or return the units of *ask* in all *windows*.

    A refund reduces the newest charges, and never below 0. The windows are independent: one may return less
    than another.

    Args:
        windows: The client's windows, changed in place.
        ask: A charge or a refund.
        now_ms: Partition time, ms since the Unix epoch.
        refundable: Whether the policy in force permits refunds.

    Returns:
        Whether anything changed, and why a refund was not made; else an empty text.

    >>> from stoplog.wire.holds import REFUND
    >>> from stoplog_worker.algorithm.sliding_window import Window
    >>> windows = {60_000: Window(60_000)}
    >>> adjust(windows, Ask(CHARGE, (7, 1, 0), 0, 5, 1), 500_000, refundable=True)
    (True, '')
    >>> adjust(windows, Ask(REFUND, (7, 2, 0), 0, 3, 1), 500_000, refundable=True), windows[60_000].total
    ((True, ''), 2)
    """
    if not ask.want:
        return False, ""
    if ask.kind == CHARGE:
        for window in windows.values():
            window.forget(now_ms)
            window.charge(now_ms, ask.want)
        return True, ""
    if not refundable:
        return False, NOT_REFUNDABLE
    returned = [window.refund(now_ms, ask.want) for window in windows.values()]
    return any(returned), ""
