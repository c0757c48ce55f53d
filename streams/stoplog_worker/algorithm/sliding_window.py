"""The algorithm: strict sliding-window counters. Pure: no clock, no I/O, integers only.

A window of ``window_ms`` is cut into ticks of ``ceil(window_ms / 60)``. A :class:`Window` is the sparse list
of the ticks in which something was charged. A tick is forgotten only when its *end* is at least the window
ago. So every tick that overlaps the window counts in full, and no interval of the window's length ever admits
more than the limit. The price: a charge may count for up to one tick, 1/60 of the window, after it has left
the window.

A client's state is a ``dict`` from window length to :class:`Window`. :func:`decide` charges it in place.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

import msgspec

from stoplog.policy import Limit
from stoplog.wire.replies import Decision

TICKS: Final = 60
"""Ticks in a window. A busy client has at most 61 of them in memory; a charge counts at most 1/60 too long.
"""

_NEVER: Final = 1 << 62
"""Later than any clock shows, ms since the Unix epoch."""


def tick_of(window_ms: int) -> int:
    """Return the length of a tick, ms, rounded up.

    >>> tick_of(60_000), tick_of(1_000)
    (1000, 17)
    """
    return -(-window_ms // TICKS)


class Window(msgspec.Struct, gc=False):
    """The charges of one window length. All times are ms since the Unix epoch.

    A tick leaves the window ``window_ms`` after the tick's *end*. Ticks that have left stay in the lists
    until the next charge. A denial or a check of cost 0 therefore changes no stored byte. A replay of earlier
    checks against this state decides them as before.

    Not tracked by Python's garbage collector (``gc=False``): there are millions of them, and none is in a
    cycle.

    Attributes:
        window_ms: Length of the window, ms.
        leave_ms: When each tick leaves the window, ascending.
        counts: Requests charged in each tick.
        kept_until_ms: 0 while a limit of the policy has this length; else when the window can be dropped.
        gone: How many ticks, from the start of the lists, have left the window.
        tick_ms: Length of a tick, ms.
        next_ms: When the next tick leaves.
        total: Requests in the ticks that have not left.
    """

    window_ms: int
    leave_ms: list[int] = []
    counts: list[int] = []
    kept_until_ms: int = 0
    gone: int = 0
    tick_ms: int = 0
    next_ms: int = _NEVER
    total: int = 0

    def __post_init__(self) -> None:
        if not self.tick_ms:  # a copy has the derived fields already
            self.tick_ms = tick_of(self.window_ms)
            if self.leave_ms:
                self.next_ms = self.leave_ms[0]
                self.total = sum(self.counts)

    def forget(self, now_ms: int) -> None:
        """Stop counting the ticks that have left the window at *now_ms*."""
        if now_ms >= self.next_ms:
            leave_ms, gone = self.leave_ms, self.gone
            self.gone = bisect_right(leave_ms, now_ms, gone)
            self.total -= sum(self.counts[gone : self.gone])
            self.next_ms = leave_ms[self.gone] if self.gone < len(leave_ms) else _NEVER

    def charge(self, now_ms: int, cost: int) -> None:
        """Add *cost* to the tick of *now_ms*; a time before the newest tick charges the newest tick."""
        leave_ms = self.leave_ms
        if self.gone:
            del leave_ms[: self.gone], self.counts[: self.gone]
            self.gone = 0
        if leave_ms and now_ms + self.window_ms < leave_ms[-1]:
            self.counts[-1] += cost
        else:
            leaves = now_ms - now_ms % self.tick_ms + self.tick_ms + self.window_ms
            if not leave_ms:
                self.next_ms = leaves
            leave_ms.append(leaves)
            self.counts.append(cost)
        self.total += cost

    def refund(self, now_ms: int, units: int) -> int:
        """Take up to *units* from the newest charges that count at *now_ms*; return how many were taken."""
        self.forget(now_ms)
        left = taken = min(units, self.total)
        while left:
            count = min(left, self.counts[-1])
            self.counts[-1] -= count
            left -= count
            if not self.counts[-1]:
                self.leave_ms.pop()
                self.counts.pop()
        self.total -= taken
        return taken

    def leaves_ms(self, at_ms: int) -> int:
        """Return when a charge made at *at_ms* would leave the window."""
        leaves = at_ms - at_ms % self.tick_ms + self.tick_ms + self.window_ms
        return max(leaves, self.leave_ms[-1]) if self.leave_ms else leaves

    def charges(self) -> Iterator[tuple[int, int]]:
        """Return, for each tick in the window, when it leaves and its count, oldest first."""
        return islice(zip(self.leave_ms, self.counts, strict=True), self.gone, None)

    def free_at_ms(self, excess: int) -> int:
        """Return when at least *excess* requests (1 to ``total``) will have left the window.

        Raises:
            ValueError: *excess* is more than ``total``.
        """
        for leaves, count in self.charges():
            excess -= count
            if excess <= 0:
                return leaves
        raise ValueError("excess is more than the window holds")

    def rebinned(self, window_ms: int, now_ms: int, newest_ms: int) -> Window:
        """Return the same charges in a window of another length.

        Each charge is taken to be made in the last millisecond of its tick, or at *newest_ms* if that is
        earlier. So nothing is allowed that the new window would deny. A check may be denied for up to one old
        tick too long, but never for longer than the new window after the newest charge.

        Args:
            window_ms: Length of the new window, ms.
            now_ms: Partition time, ms since the Unix epoch.
            newest_ms: No charge was made after this time, ms since the Unix epoch.
        """
        other = Window(window_ms)
        for leaves, count in self.charges():
            other.charge(min(leaves - self.window_ms - 1, newest_ms), count)
        other.forget(now_ms)
        return other


Windows = dict[int, Window]
"""A client's charges: a :class:`Window` for each length, by ``window_ms``."""


def is_live(windows: Windows, now_ms: int) -> bool:
    """Return whether any of *windows* has a charge at *now_ms*."""
    for window in windows.values():  # noqa: SIM110 - any() is three times slower
        if window.leave_ms and window.leave_ms[-1] > now_ms:
            return True
    return False


def reshape(windows: Windows, limits: Sequence[Limit], now_ms: int, newest_ms: int = 0) -> bool:
    """Make *windows* fit *limits*: one window for each, after the policy changed.

    A new length takes over the charges of the shortest window that covers it, else of the longest one.

    A length without a limit is dropped, with one exception. The longest is kept, and charged, if it is longer
    than all limits: it contains the charges of every shorter window. A policy that is changed back then finds
    what was spent. The window is dropped once each length dropped in its favor has passed since that length
    last had a limit.

    Args:
        windows: The state, changed in place.
        limits: The limits of the policy in force, longest window first, not empty.
        now_ms: Partition time, ms since the Unix epoch.
        newest_ms: When the newest charge was made, ms since the Unix epoch; 0 if it is not known.

    Returns:
        Whether anything changed that is stored.

    >>> windows, minute, hour = {}, Limit(100, 60_000), Limit(1_000, 3_600_000)
    >>> reshape(windows, (hour,), 500_000), decide(windows, (hour,), 500_000, cost=9, version=1).remaining
    (True, 991)
    >>> reshape(windows, (minute,), 520_000), decide(windows, (minute,), 520_000, cost=1, version=2).remaining
    (True, 90)
    >>> reshape(windows, (hour,), 580_000), decide(windows, (hour,), 580_000, cost=1, version=3).remaining
    (True, 989)
    """
    if len(windows) == len(limits):
        for limit in limits:
            if limit.window_ms not in windows:
                break
        else:
            changed = False
            for window in windows.values():
                if window.kept_until_ms:
                    window.kept_until_ms = 0
                    changed = True
            return changed
    if not windows:
        # A new client, or one without live charges: nothing to take over.
        for limit in limits:
            windows[limit.window_ms] = Window(limit.window_ms)
        return True
    lengths = [limit.window_ms for limit in limits]
    before = {length: window.kept_until_ms for length, window in windows.items()}
    for window in windows.values():
        window.forget(now_ms)
    known = sorted(windows)
    # No charge lies in the future. This bounds the charges of states that older workers wrote.
    newest_ms = newest_ms or now_ms
    for length in lengths:
        if length not in windows:
            source = next((other for other in known if other >= length), known[-1] if known else None)
            windows[length] = (
                windows[source].rebinned(length, now_ms, newest_ms) if source is not None else Window(length)
            )
        windows[length].kept_until_ms = 0
    retired = [length for length in known if length not in lengths]
    if retired:
        until_ms = max(windows[length].kept_until_ms or now_ms + length for length in retired)
        if retired[-1] > lengths[0] and now_ms <= until_ms:
            windows[retired.pop()].kept_until_ms = until_ms
        for length in retired:
            del windows[length]
    changed = before != {length: window.kept_until_ms for length, window in windows.items()}
    # Longest first, whatever the history, so that equal states are stored as equal bytes.
    ordered = sorted(windows.items(), reverse=True)
    windows.clear()
    windows.update(ordered)
    return changed


def usage(windows: Windows, limit: Limit, now_ms: int) -> tuple[int, int]:
    """Return the requests that count against *limit* at *now_ms*, and in how many ms none will.

    The second assumes that nothing more is charged.

    >>> windows, limits = {}, (Limit(2, 60_000),)
    >>> reshape(windows, limits, 500_000), decide(windows, limits, 500_000, cost=1, version=7).allowed
    (True, True)
    >>> usage(windows, limits[0], 510_000), usage(windows, limits[0], 561_000)
    ((1, 51000), (0, 0))
    """
    window = windows.get(limit.window_ms)
    if window is None:
        return 0, 0
    window.forget(now_ms)
    return window.total, window.leave_ms[-1] - now_ms if window.total else 0


def decide(windows: Windows, limits: Sequence[Limit], now_ms: int, cost: int, version: int) -> Decision:
    """Charge *cost* to *windows* if all *limits* allow it at *now_ms*; a denial charges nothing.

    Args:
        windows: The state, changed in place. :func:`reshape` has given it a window for each limit: sparse
            ticks, oldest first, at most 61 of them in the window.
        limits: The limits of the policy in force, not empty: at most ``max`` requests in any ``window_ms``
            milliseconds, each.
        now_ms: Partition time, ms since the Unix epoch. A time before the newest tick is read as that tick.
        cost: Requests to charge, 0 to 1,000,000; 0 only looks. The caller has checked the range.
        version: Version of the policy, copied into the decision.

    Returns:
        The decision. Its ``limit``, ``remaining`` (0 to ``limit``) and ``reset_after_ms`` are those of the
        limit with the fewest requests left. ``retry_after_ms`` is 0 if the check is allowed, and ``None`` if
        *cost* is above a limit, where waiting cannot help. Otherwise the same check passes after that time,
        unless more is charged.

    Raises:
        KeyError: *windows* lacks a limit's window: :func:`reshape` was not called for *limits*.

    >>> windows, limits = {}, (Limit(2, 60_000),)
    >>> reshape(windows, limits, 500_000)
    True
    >>> first = decide(windows, limits, 500_000, cost=1, version=7)
    >>> first.allowed, first.limit, first.remaining, first.reset_after_ms, first.retry_after_ms
    (True, 2, 1, 61000, 0)
    >>> decide(windows, limits, 510_300, cost=1, version=7).remaining
    0
    >>> denied = decide(windows, limits, 530_000, cost=1, version=7)
    >>> denied.allowed, denied.reset_after_ms, denied.retry_after_ms
    (False, 41000, 31000)
    >>> decide(windows, limits, 561_000, cost=1, version=7).allowed
    True
    """
    allowed, never, free_at_ms = True, False, now_ms
    left, nearest, maximum = 0, None, 0
    for limit in limits:
        window = windows[limit.window_ms]
        if now_ms >= window.next_ms:
            window.forget(now_ms)
        free = limit.max - window.total
        if nearest is None or free < left:
            left, nearest, maximum = free, window, limit.max
        if cost > free:
            allowed = False
            if cost > limit.max:
                never = True
            else:
                free_at_ms = max(free_at_ms, window.free_at_ms(cost - free))
    assert nearest is not None
    if allowed and cost:
        for window in windows.values():
            window.charge(now_ms, cost)
        left -= cost
    # The limit is fully available again when the last charge leaves.
    reset_after_ms = nearest.leave_ms[-1] - now_ms if nearest.total else 0
    return Decision(
        allowed,
        maximum,
        left if left > 0 else 0,
        reset_after_ms,
        None if never else free_at_ms - now_ms,
        version,
    )
