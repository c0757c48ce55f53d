"""The algorithm: strict sliding-window counters. Pure: no clock, no I/O, integers only.

A window of ``window_ms`` is cut into ticks of ``ceil(window_ms / 60)``; a :class:`Window` is the sparse
list of ticks in which something was charged. A tick is forgotten only when its *end* is at least the
window ago, so every tick that overlaps the window counts whole, and in no interval of the window's
length is more than the limit ever admitted. The price is at most one tick, 1/60 of the window, during
which a charge still counts although it has left the window.

A client's state is a ``dict`` from window length to :class:`Window`; :func:`decide` charges it in place.
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
"""Ticks in a window: 61 pairs at most for a busy client, 1/60 of the window at most lost."""

_NEVER: Final = 1 << 62
"""Milliseconds since the Unix epoch that no clock shows."""


def tick_of(window_ms: int) -> int:
    """Milliseconds of a tick."""
    return -(-window_ms // TICKS)


class Window(msgspec.Struct, gc=False):
    """Charges of one window length: for each tick when it leaves the window, ascending, and its count.

    A tick leaves as long after its *end* as the window is. The first ``gone`` of them have left and are
    dropped by the next charge, not before: a refusal or a peek leaves the charges as they were, so that
    checks that came before it, and are replayed after it, find what they found. ``total`` is the sum of the
    others, the first of which leaves at ``next_ms``. ``kept_until_ms`` is 0 while a policy asks for this
    window; else when it is of no more use. Times are in ms since the Unix epoch.

    There are millions of them, in no cycle: Python's collector need not look at them.
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
        if not self.tick_ms:  # a copy has all of it
            self.tick_ms = tick_of(self.window_ms)
            if self.leave_ms:
                self.next_ms = self.leave_ms[0]
                self.total = sum(self.counts)

    def forget(self, now_ms: int) -> None:
        """Count no more any tick whose end is at least the window ago."""
        if now_ms >= self.next_ms:
            leave_ms, gone = self.leave_ms, self.gone
            self.gone = bisect_right(leave_ms, now_ms, gone)
            self.total -= sum(self.counts[gone : self.gone])
            self.next_ms = leave_ms[self.gone] if self.gone < len(leave_ms) else _NEVER

    def charge(self, now_ms: int, cost: int) -> None:
        """Add *cost* at *now_ms*; earlier than the newest tick is read as that tick."""
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

    def charges(self) -> Iterator[tuple[int, int]]:
        """When each of those in the window leaves it, and its count, oldest first."""
        return islice(zip(self.leave_ms, self.counts, strict=True), self.gone, None)

    def free_at_ms(self, excess: int) -> int:
        """When charges of at least *excess* (1 to ``total``) will have been forgotten."""
        for leaves, count in self.charges():
            excess -= count
            if excess <= 0:
                return leaves
        raise ValueError("excess is more than the window holds")

    def rebinned(self, window_ms: int, now_ms: int) -> Window:
        """The same charges under another window length, each as late as it may have been.

        A tick's charges are read as made at the tick's last millisecond: what the new window would not
        allow is then never allowed, and may be refused for up to one old tick longer.
        """
        other = Window(window_ms)
        for leaves, count in self.charges():
            other.charge(leaves - self.window_ms - 1, count)
        other.forget(now_ms)
        return other


Windows = dict[int, Window]
"""A client's state: a :class:`Window` for each length, by ``window_ms``."""


def is_live(windows: Windows, now_ms: int) -> bool:
    """Whether a charge is left in any of *windows*."""
    for window in windows.values():  # noqa: SIM110 - any() takes three times as long
        if window.leave_ms and window.leave_ms[-1] > now_ms:
            return True
    return False


def reshape(windows: Windows, limits: Sequence[Limit], now_ms: int) -> bool:
    """Give *windows* a window for each of *limits*; returns whether anything changed.

    A new length takes over the charges of the shortest window that covers it, else of the longest there
    is. Of the lengths no longer asked for, the longest is kept (and charged on) if it is longer than those
    asked for, until each of the lengths it stands for has passed since that was last asked for: a policy
    that is changed back then finds what was spent. (A longer window knows all that a shorter one does.)

    Args:
        windows: State, changed in place.
        limits: Of the policy in force, longest window first, not empty.
        now_ms: Partition time.
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
        # A client never seen, or as good as that: nothing to take over.
        for limit in limits:
            windows[limit.window_ms] = Window(limit.window_ms)
        return True
    lengths = [limit.window_ms for limit in limits]
    before = {length: window.kept_until_ms for length, window in windows.items()}
    for window in windows.values():
        window.forget(now_ms)
    known = sorted(windows)
    for length in lengths:
        if length not in windows:
            source = next((other for other in known if other >= length), known[-1] if known else None)
            windows[length] = (
                windows[source].rebinned(length, now_ms) if source is not None else Window(length)
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
    # The longest first, however it came to be: equal states are stored as equal bytes.
    ordered = sorted(windows.items(), reverse=True)
    windows.clear()
    windows.update(ordered)
    return changed


def usage(windows: Windows, limit: Limit, now_ms: int) -> tuple[int, int]:
    """What counts against *limit* at *now_ms*, and in how many ms nothing will, if no more is spent.

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
    """Charge *cost* to *windows* if all *limits* allow it at *now_ms*; a refusal charges nothing.

    Args:
        windows: State, changed in place; :func:`reshape` has given it a window for each limit.
        limits: Of the policy in force, not empty.
        now_ms: Partition time in ms. Earlier than the newest tick is read as that tick.
        cost: Requests to charge, 0 to 1,000,000; 0 only looks.
        version: Of the policy, for the decision.

    Returns:
        The decision; its ``limit``, ``remaining`` and ``reset_after_ms`` are those of the limit nearest to
        being used up. ``retry_after_ms`` is 0 if allowed, ``None`` if *cost* is above a limit (waiting
        cannot help), else when the same check would pass if nothing else is charged meanwhile.

    >>> windows, limits = {}, (Limit(2, 60_000),)
    >>> reshape(windows, limits, 500_000)
    True
    >>> first = decide(windows, limits, 500_000, cost=1, version=7)
    >>> first.allowed, first.limit, first.remaining, first.reset_after_ms, first.retry_after_ms
    (True, 2, 1, 61000, 0)
    >>> decide(windows, limits, 510_300, cost=1, version=7).remaining
    0
    >>> refused = decide(windows, limits, 530_000, cost=1, version=7)
    >>> refused.allowed, refused.reset_after_ms, refused.retry_after_ms
    (False, 41000, 31000)
    >>> decide(windows, limits, 561_000, cost=1, version=7).allowed
    True
    """
    allowed, never, free_at_ms = True, False, now_ms
    left, nearest, of = 0, None, 0
    for limit in limits:
        window = windows[limit.window_ms]
        if now_ms >= window.next_ms:
            window.forget(now_ms)
        free = limit.max - window.total
        if nearest is None or free < left:
            left, nearest, of = free, window, limit.max
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
    # What is not empty is so until its last charge leaves.
    reset_after_ms = nearest.leave_ms[-1] - now_ms if nearest.total else 0
    return Decision(
        allowed,
        of,
        left if left > 0 else 0,
        reset_after_ms,
        None if never else free_at_ms - now_ms,
        version,
    )
