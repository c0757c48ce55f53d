"""Start a limiter that no ``async with`` has entered: at its first use, until its event loop ends.

Web applications without a lifespan use it, and limiters in a process that was forked.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Future, Task
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stoplog.client.limiter import Limiter

RETRY_S: Final = 1.0
"""Seconds after a failed start until the next one. Calls in between raise the same error."""


class SelfStart:
    """Starts *limiter* in the event loop that uses it.

    Args:
        limiter: The limiter.
        publish_timeout_s: The publish timeout. A call waits for the start for a part of it, so that it still
            has its whole deadline.
    """

    def __init__(self, limiter: Limiter, publish_timeout_s: float) -> None:
        self._limiter = limiter
        self._patience_s = 0.8 * publish_timeout_s
        self._loop: AbstractEventLoop | None = None
        self._started: Future[None]
        self._task: Task[None]
        self._failed_at = float("-inf")

    async def wait(self) -> bool:
        """Start the limiter unless it starts already, and wait until it runs.

        Returns:
            Whether it runs. Otherwise the start takes longer than a call may wait, and goes on.

        Raises:
            TopicError: The broker's topics contradict topics.yaml.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop or (self._task.done() and monotonic() - self._failed_at >= RETRY_S):
            self._loop, self._started = loop, loop.create_future()
            self._task = loop.create_task(self._run(self._started))
        done, _ = await asyncio.wait([self._started], timeout=self._patience_s)
        if not done or self._started.cancelled():  # cancelled: the event loop is ending
            return False
        self._started.result()
        return True

    async def _run(self, started: Future[None]) -> None:
        try:
            async with self._limiter:
                started.set_result(None)
                # An event loop that ends cancels its tasks, and waits for them.
                await asyncio.get_running_loop().create_future()
        except Exception as exc:
            if started.done():
                raise
            self._failed_at = monotonic()
            started.set_exception(exc)
            started.exception()  # nobody may be waiting any more
        finally:
            started.cancel()
