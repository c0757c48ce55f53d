"""The limiter for threads: the same calls, each of which waits for its answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import uvloop

from stoplog.client.answer import Answer
from stoplog.client.cluster_status import Readiness, Status
from stoplog.client.limiter import Limiter
from stoplog.client.limits_admin import Applied, LimitsPage
from stoplog.client.settings import Settings
from stoplog.client.top_rejected import Rejected
from stoplog.client.traffic import Traffic
from stoplog.policy import Policy
from stoplog.wire.checks import Check
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.replies import LookupReply

T = TypeVar("T")


class BlockingLimiter:
    """A :class:`~stoplog.client.limiter.Limiter` in a thread of its own, for any number of other threads.

    ::

        with BlockingLimiter("127.0.0.1:9092") as limiter:
            answer = limiter.check("alice")

    Checks that threads ask at the same time share batches, so one is enough for a process.

    Args:
        kafka: As :class:`~stoplog.client.limiter.Limiter`.
        fields: Likewise.
    """

    def __init__(self, kafka: str | Settings, **fields: Any) -> None:
        self._limiter = Limiter(kafka, **fields)
        self._thread = threading.Thread(target=self._run, name="stoplog-limiter", daemon=True)
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

    def look_up(self, client: str, *, plan: str = "", resource: str = "") -> LookupReply:
        """What *client* is held to and has used: :meth:`Limiter.look_up`, and its errors."""
        return self._wait(self._limiter.look_up(client, plan=plan, resource=resource))

    def set_limits(self, key: UpdateKey, policy: Policy | None) -> Applied:
        """Hold a client, plan or the default to *policy*: :meth:`Limiter.set_limits`, and its errors."""
        return self._wait(self._limiter.set_limits(key, policy))

    def get_limits(self, key: UpdateKey) -> Policy | None:
        """The policy stored under exactly this key: :meth:`Limiter.get_limits`, and its errors."""
        return self._wait(self._limiter.get_limits(key))

    def list_limits(self, after: str | None = None, limit: int = 100, kind: str | None = None) -> LimitsPage:
        """One page of the stored policies: :meth:`Limiter.list_limits`, and its errors."""
        return self._wait(self._limiter.list_limits(after, limit, kind))

    def reset(self, client: str, resource: str = "") -> Applied:
        """Forget what *client* has spent: :meth:`Limiter.reset`, and its errors."""
        return self._wait(self._limiter.reset(client, resource))

    def status(self) -> Status:
        """Mode, nodes and the store's state, as known now; costs no I/O."""
        return self._wait(self._in_loop(self._limiter.status))

    def traffic(self) -> Traffic:
        """What was counted so far; costs no I/O."""
        return self._wait(self._in_loop(self._limiter.traffic))

    def most_rejected(self) -> list[Rejected]:
        """The clients rejected most in the last minutes; at most 100."""
        return self._wait(self._in_loop(self._limiter.most_rejected))

    async def _in_loop(self, read: Callable[[], T]) -> T:
        return read()  # of the loop alone, as all of it

    def ready(self) -> Readiness:
        """Whether checks of one partition at least are answered from the store; if not, why."""
        return self._wait(self._limiter.ready())

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
