"""Hand over events from a thread to the event loop, which handles them in order, even within a long turn."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable


class Arrivals:
    """The events that have arrived and were not handled yet.

    The event loop handles them when it gets to it. In overload, a turn of it may last longer than a proof
    that no update was missed (:data:`~stoplog.client.update_proofs.PROOF_S`). So the batcher calls
    :meth:`handle` before it answers a check. Otherwise, permits of leases could not be used for most of such
    a turn, and the turns would stay that long.

    Args:
        loop: The event loop.

    Attributes:
        waiting: The events. If it is empty, :meth:`handle` does nothing.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self.waiting: deque[Callable[[], None]] = deque()

    def add(self, event: Callable[[], None]) -> None:
        """Have the event loop call *event*. Any thread."""
        self.waiting.append(event)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.handle)

    def handle(self) -> None:
        """Handle what has arrived. Event loop only."""
        while self.waiting:
            self.waiting.popleft()()
