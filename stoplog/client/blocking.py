"""The limiter for threads: the calls of :class:`~stoplog.client.limiter.Limiter`, without ``await``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from stoplog.client.answer import Answer
from stoplog.client.cluster_status import Readiness, Status
from stoplog.client.fail_open import (
    BROKER,
    INTERNAL_ERROR,
    STOPPING,
    OnUnavailable,
    degraded_answer,
    fails_closed,
)
from stoplog.client.green_threads import refuse_green_threads
from stoplog.client.held import Held, OnError
from stoplog.client.limiter import SLICE, Limiter
from stoplog.client.limiter_thread import LimiterThread, Stopped
from stoplog.client.limits_admin import Applied, LimitsPage
from stoplog.client.limits_history import HistoryPage
from stoplog.client.refunds import Refund
from stoplog.client.reservations import DEFAULT_TTL_MS, Reservation, Settled
from stoplog.client.settings import Settings
from stoplog.client.top_rejected import Rejected
from stoplog.client.traffic import Traffic
from stoplog.forks import call_after_fork, call_at_exit, leak
from stoplog.log_throttle import LogThrottle
from stoplog.policy import Policy
from stoplog.wire.audit import ChangeSource
from stoplog.wire.checks import Check
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.replies import LookupReply

log = logging.getLogger(__name__)

T = TypeVar("T")

_STOP_S: Final = 10.0
"""Longest time to stop, beside the deadline and the publish timeout."""

_LOG_PAUSE_S: Final = 60.0
"""Seconds between two log lines about a thread that does not answer."""


class BlockingLimiter:
    """A :class:`~stoplog.client.limiter.Limiter` in a thread of its own. Any number of threads may call it.

    ::

        with BlockingLimiter("127.0.0.1:9092") as limiter:
            answer = limiter.check("alice")

    Simultaneous checks of several threads share batches, so a process needs only one.

    A call never waits longer for the store than the deadline and the publish timeout together, even if the
    thread is broken. In a process that was forked, a limiter that ran in the parent starts anew at its first
    call, as a node of its own.

    Args:
        kafka: Bootstrap servers (``host:port``, comma separated), or all settings.
        fields: Settings by name, besides bootstrap servers. See :class:`~stoplog.client.limiter.Limiter`.

    Attributes:
        metrics: Counts and gauges; they may be read before the start and after the stop.
        identity: Names the clients of requests, by the settings.

    Raises:
        SettingsError: A setting is unknown or invalid.
        TopicError: The topics file cannot be read.
    """

    def __init__(self, kafka: str | Settings, **fields: Any) -> None:
        self._limiter = Limiter(kafka, **fields)
        self.metrics: Final = self._limiter.metrics
        self.identity: Final = self._limiter.identity
        self._lock = threading.Lock()
        """Protects the attributes below. Nobody waits while holding it."""
        self._thread: LimiterThread | None = None
        """Starts or runs."""
        self._stopping: LimiterThread | None = None
        self._starts_itself = False
        self._stops_at_exit = False
        self._exits = False
        """Whether the process ends. The limiter does not start again."""
        self._throttle = LogThrottle(_LOG_PAUSE_S, monotonic)
        call_after_fork(self)

    def __enter__(self) -> Self:
        """Start. Without a broker the limiter starts as well, and checks fail open.

        Raises:
            RuntimeError: The limiter is running, or is being started or stopped.
            SettingsError: gevent or eventlet has replaced the threads of this process.
            TopicError: The broker's topics contradict topics.yaml.
        """
        refuse_green_threads()
        with self._lock:
            if self._thread is not None or self._stopping is not None:
                raise RuntimeError("the limiter is running already: start it once, and share it")
            self._thread = thread = LimiterThread(self._limiter, enters=True)
        try:
            thread.wait_until_started()
        except BaseException:
            with self._lock:
                if self._thread is thread:
                    self._thread = None
            thread.request_stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, once every waiting thread has its answer."""
        self.stop()

    def start_on_first_use(self) -> None:
        """Have the first call start the limiter. It stops with the process, or with :meth:`stop`.

        A call that comes after :meth:`stop` starts it again.

        Raises:
            SettingsError: gevent or eventlet has replaced the threads of this process.
        """
        refuse_green_threads()
        self._starts_itself = True
        self._limiter.start_on_first_use()

    def stop(self) -> None:
        """Stop, once every waiting thread has its answer. Do nothing if the limiter does not run.

        Checks that come during the stop are degraded, with the reason ``stopping``. Other calls raise
        ``RuntimeError``.
        """
        with self._lock:  # no call is submitted after the stop, and earlier ones run before it
            if self._thread is not None:
                self._stopping, self._thread = self._thread, None
            thread = self._stopping
        if thread is None:
            return
        try:
            thread.stop(self._limiter.patience_s + _STOP_S)
        finally:
            with self._lock:
                if self._stopping is thread:
                    self._stopping = None

    def after_fork(self) -> None:
        """Become a limiter of this process, which was forked. If it ran in the parent, it starts itself."""
        self._lock = threading.Lock()
        self._stops_at_exit = self._exits = False
        leak((self._thread, self._stopping))
        self._stopping = None
        if self._thread is not None:
            self._thread = None
            self._starts_itself = True
            self._limiter.start_on_first_use()

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
        call = self._limiter.check(client, cost, plan=plan, resource=resource, on_unavailable=on_unavailable)
        try:
            return self._answer(call)
        except _NoAnswer as exc:
            return self._degraded(exc.reason, on_unavailable)

    def check_many(
        self, checks: Sequence[Check], *, on_unavailable: OnUnavailable | Sequence[OnUnavailable] = "allow"
    ) -> list[Answer]:
        """Return the answers to a list of checks of any length, in its order.

        The arguments are those of :meth:`Limiter.check_many`.

        Raises:
            InvalidInput: An id, a cost or *on_unavailable* is invalid; the field is named like
                ``checks[3].client_id``. Nothing was published.
        """
        call = self._limiter.check_many(checks, on_unavailable=on_unavailable)
        try:
            return self._answer(call, 1 + len(checks) // SLICE)
        except _NoAnswer as exc:
            each = [on_unavailable] * len(checks) if isinstance(on_unavailable, str) else on_unavailable
            return [self._degraded(exc.reason, one) for one in each]

    def publish(self, client: str, cost: int = 1, *, plan: str = "", resource: str = "") -> None:
        """Charge *cost* to *client* without waiting for an answer.

        Raises:
            InvalidInput: An id or the cost is invalid.
        """
        try:
            self._answer(self._limiter.publish(client, cost, plan=plan, resource=resource))
        except _NoAnswer as exc:
            if exc.reason != INTERNAL_ERROR:  # otherwise it may still be published
                self.metrics.count_unpublished(growing=False)

    def peek(self, client: str, *, plan: str = "", resource: str = "") -> Answer:
        """Return what a check of *client* would leave, without spending anything.

        Raises:
            InvalidInput: An id is invalid.
        """
        return self.check(client, 0, plan=plan, resource=resource)

    def wait(
        self,
        client: str,
        cost: int = 1,
        timeout: float | None = None,
        *,
        plan: str = "",
        resource: str = "",
        on_unavailable: OnUnavailable = "allow",
    ) -> Answer:
        """Wait until *client*'s limits allow *cost*, and spend it, as :meth:`Limiter.wait` does.

        Raises:
            InvalidCost: The cost exceeds a limit, so waiting cannot help.
            InvalidInput: Another argument is invalid.
            WaitTimeout: The limits did not allow the cost in time. Nothing was charged.
        """
        return self._wait(
            self._limiter.wait(
                client, cost, timeout, plan=plan, resource=resource, on_unavailable=on_unavailable
            )
        )

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

    def refund(
        self, client: str, cost: int = 1, *, refund_id: str | None = None, plan: str = "", resource: str = ""
    ) -> Refund:
        """Give *cost* back to *client*, if its limits are refundable, as :meth:`Limiter.refund` does.

        Raises:
            InvalidInput: An argument is invalid; nothing was published. Or *refund_id* is that of a
                reservation.
        """
        return self._wait(
            self._limiter.refund(client, cost, refund_id=refund_id, plan=plan, resource=resource)
        )

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

    # --- calls in the limiter's thread ----------------------------------------------------------

    def _running(self) -> LimiterThread:
        """Return the thread, which runs or starts. The caller holds the lock."""
        if self._thread is None:
            if self._stopping is not None or self._exits:
                raise Stopped
            if not self._starts_itself:
                raise RuntimeError(
                    "the limiter is not running: use it within `with BlockingLimiter(...) as limiter:`"
                )
            refuse_green_threads()
            self._stop_at_exit()
            self._thread = LimiterThread(self._limiter, enters=False)
        return self._thread

    def _stop_at_exit(self) -> None:
        if not self._stops_at_exit:
            self._stops_at_exit = True
            call_at_exit(self._exit)

    def _exit(self) -> None:
        self._exits = True
        self.stop()

    def _submit(
        self, call: Coroutine[Any, Any, T], until: float | None = None
    ) -> tuple[LimiterThread, Future[T]]:
        """Run *call* in the thread.

        Args:
            call: The call.
            until: Longest wait for the start that another thread makes (the monotonic time).

        Raises:
            Stopped: The limiter is being stopped.
            TimeoutError: The start takes longer.
        """
        try:
            while True:
                with self._lock:
                    thread = self._running()
                    if thread.accepts_calls:
                        return thread, thread.call(call)
                thread.wait_until_started(None if until is None else until - monotonic())
        except BaseException:
            call.close()
            raise

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        """Return the result of *call*, which has a bound of its own."""
        thread, future = self._submit(call)
        return thread.wait(future)

    def _answer(self, call: Coroutine[Any, Any, T], times: int = 1) -> T:
        """Return the result of *call*.

        Raises:
            _NoAnswer: There is none after *times* the time in which the store must answer, or the limiter is
                being stopped.
        """
        until = monotonic() + times * self._limiter.patience_s
        try:
            thread, future = self._submit(call, until)
        except Stopped:
            raise _NoAnswer(STOPPING) from None
        except TimeoutError:
            raise _NoAnswer(BROKER) from None  # otherwise the start would be over
        try:
            return thread.wait(future, until - monotonic())
        except Stopped:
            raise _NoAnswer(STOPPING) from None
        except TimeoutError:
            if (suppressed := self._throttle.admit()) is not None:
                log.error("the limiter's thread does not answer, which is a bug%s", suppressed)
            raise _NoAnswer(INTERNAL_ERROR) from None

    def _degraded(self, reason: str, on_unavailable: OnUnavailable) -> Answer:
        closed = fails_closed(on_unavailable)
        self.metrics.count_degraded(reason, closed)
        return degraded_answer(reason, closed)


class _NoAnswer(Exception):
    """The thread does not answer a call.

    Attributes:
        reason: The reason of degraded answers.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
