"""Wait until a client's limits allow a cost: in order within a process, and without charging in vain.

A check that is under way cannot be taken back, so an attempt is a reservation: a caller that is cancelled
gives it back, and one that goes on settles it.
"""

from __future__ import annotations

import asyncio
import random
from asyncio import Task
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Final, Protocol

from stoplog.client.answer import Answer
from stoplog.client.fail_open import OnUnavailable
from stoplog.client.reservations import Reservation, Settled
from stoplog.errors import InvalidCost, InvalidInput, WaitTimeout
from stoplog.wire.checks import Check

ATTEMPT_MS: Final = 10_000
"""Milliseconds until an attempt is charged whose settlement is lost."""

LEAST_S: Final = 0.01
"""Shortest pause between two attempts."""

JITTER: Final = 0.1
"""The longest addition to a pause, as a part of it. Processes that wait for one client then ask at different
times."""

FRESH_S: Final = 5.0
"""Seconds in which a limit that an answer contained is used. Later, it may have been raised."""


class OpenReservation(Protocol):
    """Opens a reservation, as :meth:`stoplog.client.limiter.Limiter.open_reservation` does."""

    async def __call__(
        self, client: str, cost: int, *, ttl_ms: int, plan: str, resource: str, on_unavailable: OnUnavailable
    ) -> Reservation:
        """Open a reservation."""


class _Line:
    """Those who wait for one client. The lock serves them in order."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.callers = 0
        self.releases = 0
        """Times that all callers were released, because the store did not answer."""
        self._limit: int | None = None
        self._limit_at = 0.0

    def learn(self, answer: Answer) -> None:
        """Note what *answer* to the first caller means for the others."""
        self._limit, self._limit_at = answer.limit, monotonic()
        self.releases += answer.degraded

    @property
    def limit(self) -> int | None:
        """A limit of the client, if it was seen lately."""
        return self._limit if monotonic() - self._limit_at < FRESH_S else None


class WaitingLines:
    """The callers of :meth:`stoplog.client.limiter.Limiter.wait`, a line for each client.

    Args:
        open_reservation: Opens a reservation.
        settle: Settles a reservation.
    """

    def __init__(
        self, open_reservation: OpenReservation, settle: Callable[[str, int], Coroutine[Any, Any, Settled]]
    ) -> None:
        self._open = open_reservation
        self._settle = settle
        self._lines: dict[tuple[str, str, str], _Line] = {}
        self._settling: set[Task[Settled]] = set()

    async def wait(self, check: Check, timeout: float | None, on_unavailable: OnUnavailable) -> Answer:  # noqa: ASYNC109 - see Limiter.wait
        """Return the answer that allows *check*, which is valid, or a degraded one.

        Raises:
            InvalidCost: The cost exceeds a limit.
            InvalidInput: The timeout is invalid.
            WaitTimeout: The limits did not allow it in time.
        """
        if timeout is not None and not timeout >= 0:
            raise InvalidInput("timeout", f"{timeout!r} is negative or no number", "give seconds, or None")
        began = monotonic()
        until = None if timeout is None else began + timeout
        key = (check.client, check.plan, check.resource)
        line = self._lines.setdefault(key, _Line())
        line.callers += 1
        try:
            _check_fits(check, line.limit)
            while True:
                releases = line.releases
                left_s = None if until is None else max(until - monotonic(), 0)
                try:
                    async with asyncio.timeout(left_s):
                        await line.lock.acquire()
                except TimeoutError:
                    raise WaitTimeout(check.client, timeout or 0) from None
                try:
                    if line.releases == releases:
                        return await self._first(line, check, until, began, on_unavailable)
                finally:
                    line.lock.release()
                # Released: one after the other, the callers would wait for the deadlines of all before them.
                answer = await self._attempt(check, on_unavailable)
                if answer.allowed or answer.degraded:
                    return answer
        finally:
            line.callers -= 1
            if not line.callers:
                del self._lines[key]

    async def _first(
        self, line: _Line, check: Check, until: float | None, began: float, on_unavailable: OnUnavailable
    ) -> Answer:
        while True:
            answer = await self._attempt(check, on_unavailable)
            line.learn(answer)
            if answer.allowed or answer.degraded:
                return answer
            if answer.retry_after_ms is None:
                _check_fits(check, answer.limit)
                raise InvalidCost("cost", f"{check.cost} never fits into the limits", "ask for less")
            pause_s = max(answer.retry_after_ms / 1000, LEAST_S) * (1 + JITTER * random.random())
            if until is not None and (left_s := until - monotonic()) < pause_s:
                await asyncio.sleep(max(left_s, 0))
                raise WaitTimeout(check.client, until - began)
            await asyncio.sleep(pause_s)

    async def _attempt(self, check: Check, on_unavailable: OnUnavailable) -> Answer:
        found = await self._open(
            check.client,
            check.cost,
            ttl_ms=ATTEMPT_MS,
            plan=check.plan,
            resource=check.resource,
            on_unavailable=on_unavailable,
        )
        if found.id is not None:  # one that failed closed may still be granted
            # Nobody waits for it: the cost counts from the reservation on.
            task = asyncio.create_task(self._settle(found.id, check.cost if found.allowed else 0))
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)
        return Answer(**{name: getattr(found, name) for name in Answer.__struct_fields__})


def _check_fits(check: Check, limit: int | None) -> None:
    if limit is not None and check.cost > limit:
        raise InvalidCost("cost", f"{check.cost} exceeds the limit of {limit}", "ask for less")
