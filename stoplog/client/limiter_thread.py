"""The thread and the event loop of a :class:`~stoplog.client.blocking.BlockingLimiter`."""

from __future__ import annotations

import asyncio
import logging
import threading
from asyncio import AbstractEventLoop
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any, Final, TypeVar

from stoplog.client.limiter import Limiter

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_S: Final = 1.0
"""Seconds between two looks whether the thread is alive, while a call without a bound waits."""


class Stopped(RuntimeError):
    """The limiter is being stopped, or was stopped during the call."""

    def __init__(self) -> None:
        super().__init__("the limiter is stopped: make no calls after its end")


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
        self._started: Future[None] = Future()
        self._loop: AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="stoplog-limiter", daemon=True)
        self._thread.start()

    @property
    def accepts_calls(self) -> bool:
        """Whether the event loop runs, and the limiter has started if it starts at once."""
        return self._loop is not None

    def wait_until_started(self, seconds: float | None = None) -> None:
        """Wait until the thread accepts calls.

        Args:
            seconds: Longest time to wait; ``None`` for no bound but the life of the thread.

        Raises:
            TimeoutError: It does not accept calls in time.
            TopicError: The broker's topics contradict topics.yaml.
        """
        if seconds is None:
            self._result(self._started)
        else:
            self._started.result(max(seconds, 0))

    def call(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run *coroutine* in the event loop, which accepts calls. Return a future for its result."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def wait(self, future: Future[T], seconds: float | None = None) -> T:
        """Return the result of *future*, from :meth:`call`. If the wait is interrupted, the call is canceled.

        Args:
            future: The future.
            seconds: Longest time to wait; ``None`` for no bound but the life of the thread.

        Raises:
            Stopped: The limiter was stopped during the call.
            TimeoutError: There is no result in time.
        """
        try:
            return self._result(future) if seconds is None else future.result(seconds)
        except CancelledError:
            raise Stopped from None
        except BaseException:
            future.cancel()  # otherwise an abandoned call could be charged later
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
        self.request_stop()
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.error("the limiter did not stop in %g s; its thread is left behind", seconds)

    def request_stop(self) -> None:
        """Have the limiter and the event loop stop, once they have started. Do not wait."""
        self._started.add_done_callback(self._stop_loop)

    def _stop_loop(self, started: Future[None]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(self._stopping.set)

    # --- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=_new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            if self._enters:
                async with self._limiter:
                    await self._until_stop()
            else:
                await self._until_stop()
                await self._limiter.self_start.stop()
        except BaseException as exc:
            if self._started.done():
                raise
            self._started.set_exception(exc)

    async def _until_stop(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started.set_result(None)
        await self._stopping.wait()


def _new_event_loop() -> AbstractEventLoop:
    """Return an event loop of uvloop, or of asyncio where uvloop does not exist (Windows, PyPy)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
