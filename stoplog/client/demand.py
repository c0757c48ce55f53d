"""Estimate how often each client is checked, and know who was checked before. Pure: time is passed in.

Both take bounded memory.
"""

from __future__ import annotations

from typing import Final, NamedTuple

PERIOD_S: Final = 3.0
"""Seconds of one period. The estimate covers the present period and the one before it, so older checks are
forgotten. It is the longest lease of a limit per minute."""

MAX_KEYS: Final = 10_000
"""Clients counted in one period. With more clients a period is shorter: only those that are checked often are
of interest. Both periods take at most 5 MB."""

MIN_SPAN_S: Final = 1.0
"""An estimate is never based on a shorter time, in which a few checks would look like many."""

KNOWN_S: Final = 10.0
"""Seconds for which a client is known after a check, at least: the longest lease."""

MAX_KNOWN: Final = 20_000
"""Clients that become known in that time. With more, it is shorter. They take at most 5 MB."""

Key = str | tuple[str, str]
"""A client, or a client and a resource."""

_NEVER: Final = "\0"
"""In place of a plan: no plan has this name."""


class Rate(NamedTuple):
    """How often a client is checked.

    Attributes:
        checks: Checks per second.
        units: Their total cost per second.
    """

    checks: float
    units: float


class _Count:
    """The checks of one client in one period. ``plan`` is ``None`` if they were under several plans."""

    __slots__ = ("checks", "plan", "units")

    def __init__(self, plan: str) -> None:
        self.checks = self.units = 0
        self.plan: str | None = plan


class Demand:
    """The recent checks of all clients."""

    def __init__(self) -> None:
        self._now: dict[Key, _Count] = {}
        self._before: dict[Key, _Count] = {}
        self._began_at = self._before_began_at = 0.0
        self._known: dict[Key, str | None] = {}
        """The plan of each known client; ``None`` if there were several."""
        self._known_before: dict[Key, str | None] = {}
        self._known_since = 0.0

    def add(self, key: Key, plan: str, cost: int, now: float, enough: int = 0) -> Rate | None:
        """Count a check at *now*, in seconds.

        Args:
            key: The client.
            plan: The plan of the check.
            cost: Its cost.
            now: The time; it never goes back.
            enough: Checks without which there is no estimate.

        Returns:
            The client's rate; ``None`` with fewer than *enough* checks, or if there were several plans.
        """
        if now - self._began_at >= PERIOD_S or len(self._now) >= MAX_KEYS:
            self._begin_period(now)
        count = self._now.get(key)
        if count is None:
            count = self._now[key] = _Count(plan)
        count.checks += 1
        count.units += cost
        if count.plan != plan:
            count.plan = None
            return None
        checks, units, began_at = count.checks, count.units, self._began_at
        before = self._before.get(key)
        if before is not None:
            if before.plan != plan:
                return None
            checks, units, began_at = checks + before.checks, units + before.units, self._before_began_at
        if checks < enough:
            return None
        span = max(now - began_at, MIN_SPAN_S)
        return Rate(checks / span, units / span)

    def _begin_period(self, now: float) -> None:
        recent = now - self._began_at < 2 * PERIOD_S
        self._before, self._before_began_at = (self._now, self._began_at) if recent else ({}, now)
        self._now, self._began_at = {}, now

    def is_known(self, key: Key, plan: str, now: float) -> bool:
        """Note a check, and return whether there was an earlier one in the last :data:`KNOWN_S`, at least.

        It returns false if one of the checks was under another plan. The arguments are those of :meth:`add`.
        """
        if now - self._known_since >= KNOWN_S or len(self._known) >= MAX_KNOWN:
            recent = now - self._known_since < 2 * KNOWN_S
            self._known_before, self._known = self._known if recent else {}, {}
            self._known_since = now
        before = self._known.get(key, _NEVER)
        if before is _NEVER:
            before = self._known_before.get(key, _NEVER)
        self._known[key] = plan if before is _NEVER or before == plan else None
        return before == plan
