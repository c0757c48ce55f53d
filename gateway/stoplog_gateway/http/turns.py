"""Share the turns of the event loop: in each turn, accept no more work than can be done in time.

In one turn, the event loop reads everything that has arrived. Then it sends batches, and writes responses. If
that takes long, every request waits for it twice: before it is read, and before its response is written. An
overloaded gateway therefore bounds the work of a turn. What it cannot take is answered at once, which costs
about two thirds as much:

- checks fail open (:data:`~stoplog.client.fail_open.OVERLOAD`), and are still published and counted, except
  those of Envoy's requests that are large or JSON in an unusual form;
- reservations fail open, and settlements are unconfirmed; both are published;
- other requests get 503, except probes.

That applies to HTTP and, as far as there is such a request, to gRPC.

Work that is large, such as a list of 10,000 checks, is done in slices between the turns of others.
"""

from __future__ import annotations

import time
from asyncio import get_running_loop
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final

Slice = Callable[[], bool]
"""Does some work, for about a millisecond at most; returns whether there is more."""

SLICES_S: Final = 0.002
"""Seconds of each turn for work in slices. A long turn spends up to :data:`_SHARE` of its length on it."""

_MAX_SLICES_S: Final = 0.01
_SHARE: Final = 0.25

_SLICES: Final = 8
"""Slices in one turn. Some only start work that costs more time later."""

_BUSY_S: Final = 0.001
"""Seconds of reading after which a turn is measured. Shorter ones cannot be late."""

_CROWDED: Final = 1.25
"""Time of reading, or number of requests, relative to what a turn admits, above which it is crowded. About a
fifth of its work is then to say that there is no time."""

_FAIR_SHARE: Final = 0.25
"""Part of a long turn's reading for checks that are admitted, up to one deadline. If they were refused, a
turn would hardly be shorter."""

_MIN_DENIED: Final = 8
"""Requests without time in a turn, up to which it is not crowded."""

_MIN_REQUESTS: Final = 8
_MAX_REQUESTS: Final = 1 << 16


class Turns:
    """Decide what a turn of the event loop accepts.

    Args:
        deadline_s: Seconds that a check waits for the store. Turns aim to take less, so that checks are
            answered within twice the deadline. docs/benchmarks.md shows where they do not. By default, there
            is always time.
        clock: Returns monotonic seconds.
    """

    def __init__(self, deadline_s: float = inf, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.deadline_s = deadline_s
        self._target_s = 0.8 * deadline_s
        self._max_reading_s = deadline_s / 4
        # Refused checks also take time after reading, because they are published. Without this minimum, a
        # gateway that has to refuse many would admit fewer and fewer.
        self._min_reading_s = deadline_s / 8
        self._reading_s = self._max_reading_s
        self._share_s = 0.0  # seconds of reading that are a fair share of a turn like the last one
        self._began = 0.0  # when this turn handled its first request; 0 before that
        self._ended = 0.0  # when it had read everything
        self._requests = 0
        self._denied = 0  # checks and requests for which this turn had no time
        self._max_requests = _MAX_REQUESTS
        self._last_requests = 0
        self._last_s = 0.0
        self._crowded_until = -inf
        self._slices: deque[Slice] = deque()

    @property
    def is_crowded(self) -> bool:
        """Whether the connections that are open send more than a turn has time for.

        An idle event loop measures no turn, so a crowded one counts for :attr:`deadline_s` only.
        """
        return self.clock() < self._crowded_until

    def admits_check(self) -> bool:
        """Return whether this turn has time for another check."""
        now = self.clock()
        if self._began:
            passed = now - self._began
            if passed < self._reading_s or passed < self._share_s:
                return True
            self._denied += 1
            return False
        self._begin(now)
        return True

    def admits_request(self) -> bool:
        """Return whether this turn has time for another request of the application."""
        if not self._began:
            self._begin(self.clock())
        elif self._began == inf:
            return True
        self._requests += 1
        if self._requests <= self._max_requests:
            return True
        self._denied += 1
        return False

    def _begin(self, now: float) -> None:
        self._began = now
        get_running_loop().call_soon(self._on_read)

    def _on_read(self) -> None:
        """Note that this turn has read everything that had arrived. Its responses come next."""
        now = self.clock()
        reading_s, self._began = now - self._began, 0.0
        # A turn can also last because the process was stopped for a while.
        crowded = self._denied > _MIN_DENIED and (
            reading_s > _CROWDED * self._reading_s or self._requests > _CROWDED * self._max_requests
        )
        self._denied = 0
        self._share_s = min(_FAIR_SHARE * reading_s, self.deadline_s)
        self._crowded_until = now + self.deadline_s if crowded else -inf
        self._last_requests, self._requests = min(self._requests, self._max_requests), 0
        if reading_s > _BUSY_S or self._last_requests > _MIN_REQUESTS:
            self._ended = now
            get_running_loop().call_soon(self._on_turn_end, self._last_requests)
        else:
            self._adapt(0.0, 0)

    def _on_turn_end(self, requests: int) -> None:
        self._adapt(self.clock() - self._ended, requests)

    def _adapt(self, seconds: float, requests: int) -> None:
        """Accept less if the last turn took longer than the target, otherwise more."""
        self._last_s = seconds
        if seconds > self._target_s:
            factor = self._target_s / seconds
            self._reading_s = max(self._reading_s * factor, self._min_reading_s)
            if requests:
                self._max_requests = max(int(requests * factor), _MIN_REQUESTS)
        else:
            self._reading_s = min(self._reading_s * 1.25, self._max_reading_s)
            self._max_requests = min(self._max_requests + self._max_requests // 4 + 1, _MAX_REQUESTS)

    # --- work in slices ---

    def run_in_slices(self, work: Slice) -> None:
        """Call *work* until it returns ``False``, between other requests."""
        self._slices.append(work)
        if len(self._slices) == 1:
            get_running_loop().call_soon(self._run_slices)

    def _run_slices(self) -> None:
        until = self.clock() + min(max(self._last_s * _SHARE, SLICES_S), _MAX_SLICES_S)
        # Requests of this work are always admitted: the bounds of this loop apply to them.
        reading_began, self._began = self._began, inf
        for _ in range(min(len(self._slices), _SLICES)):
            # The work stays in the queue meanwhile, so that only this method schedules itself.
            more = self._slices[0]()
            work = self._slices.popleft()
            if more:
                self._slices.append(work)
            if self.clock() >= until:
                break
        self._began = reading_began
        if self._slices:
            get_running_loop().call_soon(self._run_slices)
