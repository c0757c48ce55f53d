"""The starts of a limiter, one at a time: by ``async with``, or by its first use until its event loop ends.

Its first use starts a limiter in web applications without a lifespan, and in a process that was forked.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, Future, Task
from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any, Final

from stoplog.client.green_threads import refuse_green_threads

RETRY_S: Final = 1.0
"""Seconds after a failed start until the next one. Calls in between raise the same error."""


class SelfStart:
    """Starts a limiter in the event loop that uses it, unless something else starts it there.

    Args:
        start: Starts the limiter.
        stop: Stops the limiter, if it runs in this event loop.
        abandon: Forgets the run of an event loop that was closed without stopping the limiter. It calls
            :meth:`forget`.
        patience_s: Longest time after the begin of a start in which calls wait for it, s.
    """

    def __init__(
        self,
        start: Callable[[], Coroutine[Any, Any, None]],
        stop: Callable[[], Coroutine[Any, Any, None]],
        abandon: Callable[[], None],
        patience_s: float,
    ) -> None:
        self._start = start
        self._stop = stop
        self._abandon = abandon
        self.patience_s: Final = patience_s
        self.forget()

    def forget(self) -> None:
        """Become as new."""
        self._current: Future[None] | None = None
        """The start that was made last, until the end of the stop."""
        self._until = 0.0
        self._task: Task[None] | None = None
        """Starts the limiter at its first use, and stops it at the end of the event loop."""
        self._end: Future[None] | None = None
        self._failed: Future[None] | None = None
        self._failed_at = 0.0

    async def enter(self) -> None:
        """Start the limiter.

        Raises:
            RuntimeError: It starts or runs already, or is being stopped.
            SettingsError: gevent or eventlet has replaced the threads of this process.
        """
        await self._carry_out(self._claim())

    def release(self) -> None:
        """Allow another start: the limiter has stopped."""
        self._current = None
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    def _claim(self) -> Future[None]:
        """Return a start that no other one can overtake."""
        refuse_green_threads()
        loop = asyncio.get_running_loop()
        if self._current is not None:
            if self._current.get_loop() is loop:
                raise RuntimeError("the limiter is running already: start it once, and share it")
            if not self._current.get_loop().is_closed():
                raise RuntimeError(
                    "the limiter is running in another event loop: create one for each event loop, or share "
                    "a BlockingLimiter"
                )
            self._abandon()
        self._current = start = loop.create_future()
        self._until = monotonic() + self.patience_s
        return start

    async def _carry_out(self, start: Future[None]) -> None:
        try:
            await self._start()
        except BaseException as exc:
            self.release()
            if isinstance(exc, Exception):
                start.set_exception(exc)
                start.exception()  # nobody may be waiting any more
            else:
                start.cancel()
            raise
        start.set_result(None)

    # --- the first use ------------------------------------------------------------------------

    async def wait(self) -> bool:
        """Start the limiter unless it starts or runs already, and wait until it runs.

        Returns:
            Whether it runs, or has run and is being stopped. Otherwise the start takes longer than calls
            wait, and goes on.

        Raises:
            RuntimeError: The limiter is running in another event loop.
            SettingsError: gevent or eventlet has replaced the threads of this process, or a running node
                compares ids in another form.
            TopicError: The broker's topics contradict topics.yaml.
        """
        start = self._start_here()
        if not start.done():
            await asyncio.wait([start], timeout=max(self._until - monotonic(), 0))
        if not start.done() or start.cancelled():  # cancelled: the event loop is ending
            return False
        start.result()
        return True

    def _start_here(self) -> Future[None]:
        loop, current, failed = asyncio.get_running_loop(), self._current, self._failed
        if current is not None and current.get_loop() is loop:
            return current
        if failed is not None and failed.get_loop() is loop and monotonic() - self._failed_at < RETRY_S:
            return failed
        start = self._claim()
        self._end = loop.create_future()
        self._task = loop.create_task(self._run(start, self._end))
        return start

    async def _run(self, start: Future[None], end: Future[None]) -> None:
        try:
            await self._carry_out(start)
        except Exception:  # noqa: BLE001 - the calls that wait raise it
            self._failed, self._failed_at = start, monotonic()
            return
        with suppress(CancelledError):  # an event loop that ends cancels its tasks, and waits for them
            await end
        await self._stop()

    async def stop(self) -> None:
        """Stop the limiter if its first use has started it in this event loop, or is starting it."""
        task, end, current = self._task, self._end, self._current
        if task is None or end is None or task.get_loop() is not asyncio.get_running_loop():
            return
        if current is not None and not current.done():
            task.cancel()
        elif not end.done():
            end.set_result(None)
        await asyncio.wait([task])
