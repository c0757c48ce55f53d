"""The limiter for threads: the same calls, each of which waits for its answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import uvloop

from gateway.answer import Answer
from gateway.limiter import Limiter
from gateway.settings import Settings
from streams.contract.records import Check

T = TypeVar("T")


class BlockingLimiter:
    """A :class:`~gateway.limiter.Limiter` in a thread of its own, for any number of other threads.

    ::

        with BlockingLimiter("127.0.0.1:9092") as limiter:
            answer = limiter.check("alice")

    Checks that threads ask at the same time share batches, so one is enough for a process.

    Args:
        kafka: As :class:`~gateway.limiter.Limiter`.
        fields: Likewise.
    """

    def __init__(self, kafka: str | Settings, **fields: Any) -> None:
        self._limiter = Limiter(kafka, **fields)
        self._thread = threading.Thread(target=self._run, name="sluice-limiter", daemon=True)
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._stopping = asyncio.Event()
        self._submitting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        """Start; can be done once. A broker that is not there is no error, as with ``Limiter``.

        Raises:
            TopicError: the broker's topics contradict topics.yaml.
        """
        self._thread.start()
        self._loop = self._started.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop: every thread still waiting gets its answer first."""
        with self._submitting:  # what was submitted before is asked before; nothing is submitted after
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._loop = None
        self._thread.join()

    def check(self, client: str, cost: int = 1, *, plan: str = "", resource: str = "") -> Answer:
        """Spend *cost* of *client*'s limit if it allows that; a cost of 0 only looks.

        Raises:
            InvalidInput: an id or a cost that cannot be used; nothing was published.
        """
        return self._wait(self._limiter.check(client, cost, plan=plan, resource=resource))

    def check_many(self, checks: Sequence[Check]) -> list[Answer]:
        """Check a list of any length; answers come in its order.

        Raises:
            InvalidInput: names the first offender, ``checks[3].client_id``; nothing was published.
        """
        return self._wait(self._limiter.check_many(checks))

    def publish(self, client: str, cost: int = 1, *, plan: str = "", resource: str = "") -> None:
        """Have *cost* counted, without waiting for an answer.

        Raises:
            InvalidInput: as :meth:`check`.
        """
        self._wait(self._limiter.publish(client, cost, plan=plan, resource=resource))

    def peek(self, client: str, *, plan: str = "", resource: str = "") -> Answer:
        """How *client* stands; nothing is spent.

        Raises:
            InvalidInput: as :meth:`check`.
        """
        return self._wait(self._limiter.peek(client, plan=plan, resource=resource))

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        with self._submitting:
            if self._loop is None:
                call.close()
                raise RuntimeError(
                    "the limiter does not run: use it within `with BlockingLimiter(...) as limiter:`"
                )
            answer = asyncio.run_coroutine_threadsafe(call, self._loop)
        return answer.result()

    # --- in its own thread ------------------------------------------------------------------

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            async with self._limiter:
                self._started.set_result(asyncio.get_running_loop())
                await self._stopping.wait()
        except BaseException as exc:
            if self._started.done():
                raise
            self._started.set_exception(exc)
