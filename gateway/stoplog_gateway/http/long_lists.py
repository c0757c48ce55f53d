"""Handle long lists of checks in slices, so that they delay no other caller."""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from stoplog_gateway.http.handlers import SendResponse
from stoplog_gateway.http.overload import OverloadRefusals
from stoplog_gateway.http.turns import Turns

Work = Iterator[Future[Any] | None]
"""The work on one list. It yields after each slice: ``None``, or what the next slice has to wait for."""

MAX_BEGUN: Final = 32
"""Lists that are begun and not at their end. Each takes memory for its checks, about 3 MB for 10,000."""


class LongLists:
    """The lists that wait or are being worked on, in the order of their arrival.

    A list whose next slice has to wait for answers makes room for others meanwhile.

    Args:
        turns: Runs the slices.
        refusals: Refuses lists.
    """

    def __init__(self, turns: Turns, refusals: OverloadRefusals) -> None:
        self._turns = turns
        self._refusals = refusals
        self._waiting: deque[tuple[float, Work]] = deque()
        self._ready: deque[Work] = deque()
        self._begun = 0
        self._runs = False

    def add(self, work: Work, send: SendResponse) -> None:
        """Do *work* when its turn comes. Refuse it with 503 if a list before it has waited too long to begin.

        Args:
            work: Sends the response itself.
            send: Sends the response if the list is refused.
        """
        now = self._turns.clock()
        if self._waiting and now - self._waiting[0][0] > self._turns.deadline_s:
            self._refusals.refuse_list(b"", send)
            return
        self._waiting.append((now, work))
        self._run()

    def _run(self) -> None:
        if not self._runs and self._has_work:
            self._runs = True
            self._turns.run_in_slices(self._advance)

    @property
    def _has_work(self) -> bool:
        return bool(self._ready) or (bool(self._waiting) and self._begun < MAX_BEGUN)

    def _advance(self) -> bool:
        """Do a slice; return whether another one can follow at once."""
        if self._ready:
            work = self._ready.popleft()
        else:
            _, work = self._waiting.popleft()
            self._begun += 1
        for awaited in work:
            if awaited is None:
                self._ready.appendleft(work)  # a list is worked on until it has to wait
            else:
                awaited.add_done_callback(partial(self._go_on, work))
            break
        else:
            self._begun -= 1
        self._runs = self._has_work
        return self._runs

    def _go_on(self, work: Work, _: Future[Any]) -> None:
        self._ready.append(work)
        self._run()
