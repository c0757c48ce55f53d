"""The limiter for threads: the calls of :class:`~stoplog.client.limiter.Limiter`, without ``await``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

from stoplog.client.answer import Answer
from stoplog.client.cluster_status import Readiness, Status
from stoplog.client.fail_open import OnUnavailable
from stoplog.client.held import Held, OnError
from stoplog.client.limiter import Limiter
from stoplog.client.limits_admin import Applied, LimitsPage
from stoplog.client.limits_history import HistoryPage
from stoplog.client.reservations import DEFAULT_TTL_MS, Reservation, Settled
from stoplog.client.settings import Settings
from stoplog.client.top_rejected import Rejected
from stoplog.client.traffic import Traffic
from stoplog.policy import Policy
from stoplog.wire.audit import ChangeSource
from stoplog.wire.checks import Check
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.replies import LookupReply

T = TypeVar("T")


class BlockingLimiter:
    """A :class:`~stoplog.client.limiter.Limiter` in a thread of its own. Any number of threads may call it.

    ::

        with BlockingLimiter("127.0.0.1:9092") as limiter:
            answer = limiter.check("alice")

    Simultaneous checks of several threads share batches, so a process needs only one.

    Args:
        kafka: Bootstrap servers (``host:port``, comma separated), or all settings.
        fields: Settings by name, besides bootstrap servers. See :class:`~stoplog.client.limiter.Limiter`.

    Raises:
        SettingsError: A setting is unknown or invalid.
        TopicError: The topics file cannot be read.
    """

    def __init__(self, kafka: str | Settings, **fields: Any) -> None:
        self._limiter = Limiter(kafka, **fields)
        self._thread = threading.Thread(target=self._run, name="stoplog-limiter", daemon=True)
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._stopping = asyncio.Event()
        self._submitting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        """Start; possible once. Without a broker the limiter starts as well, and checks fail open.

        Raises:
            TopicError: The broker's topics contradict topics.yaml.
        """
        self._thread.start()
        self._loop = self._started.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, once every waiting thread has its answer."""
        with self._submitting:  # no call is submitted after the stop, and earlier ones run before it
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._loop = None
        self._thread.join()

    def check(
        self,
        client: str,
        cost: int = 1,
        *,
        plan: str = "",
        resource: str = "",
        on_unavailable: OnUnavailable = "allow",
    ) -> Answer:
        """Charge *cost* to *client* if its limits allow it; a cost of 0 only looks.

        The arguments are those of :meth:`Limiter.check`.

        Raises:
            InvalidInput: An id, the cost or *on_unavailable* is invalid. Nothing was published.
        """
        return self._wait(
            self._limiter.check(client, cost, plan=plan, resource=resource, on_unavailable=on_unavailable)
        )

    def check_many(
        self, checks: Sequence[Check], *, on_unavailable: OnUnavailable | Sequence[OnUnavailable] = "allow"
    ) -> list[Answer]:
        """Return the answers to a list of checks of any length, in its order.

        The arguments are those of :meth:`Limiter.check_many`.

        Raises:
            InvalidInput: An id, a cost or *on_unavailable* is invalid; the field is named like
                ``checks[3].client_id``. Nothing was published.
        """
        return self._wait(self._limiter.check_many(checks, on_unavailable=on_unavailable))

    def publish(self, client: str, cost: int = 1, *, plan: str = "", resource: str = "") -> None:
        """Charge *cost* to *client* without waiting for an answer.

        Raises:
            InvalidInput: An id or the cost is invalid.
        """
        self._wait(self._limiter.publish(client, cost, plan=plan, resource=resource))

    def peek(self, client: str, *, plan: str = "", resource: str = "") -> Answer:
        """Return what a check of *client* would leave, without spending anything.

        Raises:
            InvalidInput: An id is invalid.
        """
        return self._wait(self._limiter.peek(client, plan=plan, resource=resource))

    @contextmanager
    def reserve(
        self,
        client: str,
        cost: int = 1,
        *,
        ttl_ms: int = DEFAULT_TTL_MS,
        plan: str = "",
        resource: str = "",
        on_unavailable: OnUnavailable = "allow",
        on_error: OnError = "return",
    ) -> Iterator[Held]:
        """Hold *cost* for the time of a ``with`` block, as :meth:`Limiter.reserve` does.

        ::

            with limiter.reserve("team-7", 4_000) as held:
                held.used = call_the_model()

        Raises:
            Denied: On entering, if the reservation is denied. The block does not run.
            InvalidInput: On entering, if an argument is invalid; on leaving, if ``held.used`` is.
        """
        held = self._limiter.reserve(
            client,
            cost,
            ttl_ms=ttl_ms,
            plan=plan,
            resource=resource,
            on_unavailable=on_unavailable,
            on_error=on_error,
        )
        self._wait(held.open())
        try:
            yield held
        except BaseException:
            self._wait(held.close(failed=True))
            raise
        self._wait(held.close(failed=False))

    def open_reservation(
        self,
        client: str,
        cost: int = 1,
        *,
        ttl_ms: int = DEFAULT_TTL_MS,
        plan: str = "",
        resource: str = "",
        on_unavailable: OnUnavailable = "allow",
    ) -> Reservation:
        """Hold *cost* until :meth:`settle` is called, as :meth:`Limiter.open_reservation` does.

        Raises:
            InvalidInput: An argument is invalid; nothing was published.
        """
        return self._wait(
            self._limiter.open_reservation(
                client, cost, ttl_ms=ttl_ms, plan=plan, resource=resource, on_unavailable=on_unavailable
            )
        )

    def settle(self, reservation_id: str, used: int) -> Settled:
        """Charge *used* units of a reservation and give back the rest, as :meth:`Limiter.settle` does.

        Raises:
            InvalidInput: An argument is invalid; nothing was published.
        """
        return self._wait(self._limiter.settle(reservation_id, used))

    def look_up(self, client: str, *, plan: str = "", resource: str = "") -> LookupReply:
        """Return the limits of *client*, its use, and what is held, as :meth:`Limiter.look_up` does."""
        return self._wait(self._limiter.look_up(client, plan=plan, resource=resource))

    def set_limits(
        self, key: UpdateKey, policy: Policy | None, *, source: ChangeSource | None = None
    ) -> Applied:
        """Set the policy of a client, a plan or the default, as :meth:`Limiter.set_limits` does."""
        return self._wait(self._limiter.set_limits(key, policy, source=source))

    def get_limits(self, key: UpdateKey) -> Policy | None:
        """Return the policy stored under exactly this key, as :meth:`Limiter.get_limits` does."""
        return self._wait(self._limiter.get_limits(key))

    def list_limits(self, after: str | None = None, limit: int = 100, kind: str | None = None) -> LimitsPage:
        """Return one page of the stored policies, as :meth:`Limiter.list_limits` does."""
        return self._wait(self._limiter.list_limits(after, limit, kind))

    def limits_history(self, key: UpdateKey, before: str | None = None, limit: int = 100) -> HistoryPage:
        """Return one page of the changes of the limits, as :meth:`Limiter.limits_history` does."""
        return self._wait(self._limiter.limits_history(key, before, limit))

    def reset(self, client: str, resource: str = "", *, source: ChangeSource | None = None) -> Applied:
        """Forget what *client* has spent, as :meth:`Limiter.reset` does."""
        return self._wait(self._limiter.reset(client, resource, source=source))

    def status(self) -> Status:
        """Return the mode, the state of the store and the nodes. No I/O."""
        return self._wait(self._in_loop(self._limiter.status))

    def traffic(self) -> Traffic:
        """Return what was counted so far. No I/O."""
        return self._wait(self._in_loop(self._limiter.traffic))

    def most_rejected(self) -> list[Rejected]:
        """Return up to 100 clients rejected most in the last minutes."""
        return self._wait(self._in_loop(self._limiter.most_rejected))

    async def _in_loop(self, read: Callable[[], T]) -> T:
        return read()  # a limiter belongs to its loop

    def ready(self) -> Readiness:
        """Return whether the store answers checks of at least one partition, and if not, why."""
        return self._wait(self._limiter.ready())

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        with self._submitting:
            if self._loop is None:
                call.close()
                raise RuntimeError(
                    "the limiter is not running: use it within `with BlockingLimiter(...) as limiter:`"
                )
            answer = asyncio.run_coroutine_threadsafe(call, self._loop)
        return answer.result()

    # --- in the limiter's own thread ----------------------------------------------------------

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=_new_event_loop) as runner:
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


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop of uvloop, or of asyncio where uvloop does not exist (Windows, PyPy)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
