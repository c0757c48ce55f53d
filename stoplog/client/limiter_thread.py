"""The thread and the event loop of a :class:`~stoplog.client.blocking.BlockingLimiter`."""

from __future__ import annotations

import asyncio
import logging
import threading
from asyncio import AbstractEventLoop
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from stoplog.client.limiter import Limiter

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_S: Final = 1.0
"""Seconds between two looks whether the thread is alive, while a call without a bound waits."""


class LimiterThread:
    """Runs an event loop for *limiter* until it is stopped.

    Args:
        limiter: The limiter.
        enters: Whether to start the limiter at once. Otherwise its calls start it.
    """

    def __init__(self, limiter: Limiter, *, enters: bool) -> None:
        self._limiter = limiter
        self._enters = enters
        self._stopping = asyncio.Event()
        self._started: Future[AbstractEventLoop] = Future()
        self._thread = threading.Thread(target=self._run, name="stoplog-limiter", daemon=True)
        self._thread.start()

    def wait_until_started(self) -> None:
        """Wait until the event loop runs, and, if it enters the limiter, until that has started.

        Raises:
            TopicError: The broker's topics contradict topics.yaml.
        """
        self._result(self._started)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run *coroutine* in the event loop, which runs. Return a future for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._started.result())

    def wait(self, future: Future[T], seconds: float | None = None) -> T:
        """Return the result of *future*, from :meth:`call`.

        Args:
            future: The future.
            seconds: Longest time to wait; ``None`` for no bound but the life of the thread.

        Raises:
            TimeoutError: There is no result in time.
        """
        if seconds is None:
            return self._result(future)
        try:
            return future.result(seconds)
        except TimeoutError:
            future.cancel()
            raise

    def _result(self, future: Future[T]) -> T:
        while True:
            alive = self._thread.is_alive()
            try:
                return future.result(LOOK_S)
            except TimeoutError:
                if future.done():
                    raise  # of the call itself
                if not alive:
                    raise RuntimeError("the limiter's thread has ended, which is a bug") from None

    def stop(self, seconds: float) -> None:
        """Stop the limiter and the event loop. Return after *seconds* even if that is not done."""
        self._started.result().call_soon_threadsafe(self._stopping.set)
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.error("the limiter did not stop in %g s; its thread is left behind", seconds)

    # --- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=_new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        if not self._enters:  # the end of the loop stops the limiter
            self._started.set_result(asyncio.get_running_loop())
            await self._stopping.wait()
            return
        try:
            async with self._limiter:
                self._started.set_result(asyncio.get_running_loop())
                await self._stopping.wait()
        except BaseException as exc:
            if self._started.done():
                raise
            self._started.set_exception(exc)


def _new_event_loop() -> AbstractEventLoop:
    """Return an event loop of uvloop, or of asyncio where uvloop does not exist (Windows, PyPy)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
