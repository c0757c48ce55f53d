"""Handle long lists of checks one after the other, in slices, so that they delay no other caller."""

from __future__ import annotations

from asyncio import Future
from collections import deque
from collections.abc import Iterator
from typing import Any

from stoplog_gateway.http.handlers import SendResponse
from stoplog_gateway.http.overload import OverloadRefusals
from stoplog_gateway.http.turns import Turns

Work = Iterator[Future[Any] | None]
"""The work on one list. It yields after each slice: ``None``, or what the next slice has to wait for."""


class LongLists:
    """The lists that wait or are being worked on. Only one list at a time takes memory for its checks.

    Args:
        turns: Runs the slices.
        refusals: Refuses lists.
    """

    def __init__(self, turns: Turns, refusals: OverloadRefusals) -> None:
        self._turns = turns
        self._refusals = refusals
        self._waiting: deque[tuple[float, Work]] = deque()

    def add(self, work: Work, send: SendResponse) -> None:
        """Do *work* when its turn comes. Refuse it with 503 if the lists before it have waited too long.

        Args:
            work: Sends the response itself.
            send: Sends the response if the list is refused.
        """
        now = self._turns.clock()
        if self._waiting and now - self._waiting[0][0] > self._turns.deadline_s:
            self._refusals.refuse_list(b"", send)
            return
        self._waiting.append((now, work))
        if len(self._waiting) == 1:
            self._turns.run_in_slices(self._advance)

    def _advance(self) -> bool:
        """Do a slice; return whether the next one can follow at once."""
        for awaited in self._waiting[0][1]:
            if awaited is None:
                return True
            awaited.add_done_callback(self._go_on)
            return False
        self._waiting.popleft()
        return bool(self._waiting)

    def _go_on(self, _: Future[Any]) -> None:
        self._turns.run_in_slices(self._advance)
