"""The SDK: check whether a client may make a request now, and manage its limits."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import threading
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, cast

from stoplog.client.answer import Answer, Outcome, PendingAnswer, answer_of, is_degraded
from stoplog.client.batcher import Batcher
from stoplog.client.cluster_status import STATES, ProcessState, Readiness, Status, count_by_role, merge_status
from stoplog.client.deferred_settlements import DeferredSettlements
from stoplog.client.engine import Engine, NotStarted, OtherPartitionCount, wall_ms
from stoplog.client.fail_open import OnUnavailable, fails_closed
from stoplog.client.growth_pause import GrowthPause
from stoplog.client.held import Held, OnError
from stoplog.client.instrumentation import load_instrumentation
from stoplog.client.limits_admin import Applied, LimitsPage
from stoplog.client.limits_history import HistoryPage
from stoplog.client.metrics import Metrics
from stoplog.client.refunds import Refund
from stoplog.client.reservations import DEFAULT_TTL_MS, Reservation, Settled, check_ttl
from stoplog.client.self_start import SelfStart
from stoplog.client.settings import Settings, read_settings
from stoplog.client.top_rejected import Rejected, merge_summaries, ranked
from stoplog.client.traffic import Traffic, traffic
from stoplog.client.update_proofs import PROOF_S
from stoplog.client.waiting import WaitingLines
from stoplog.errors import InvalidInput, UpgradeFirst
from stoplog.forks import call_after_fork, leak
from stoplog.identity.identity import Identity
from stoplog.identity.normalization import normalizer
from stoplog.policy import PLAN_MARK, Policy, check_cost, check_id, plan_policy
from stoplog.topics import CHECKS, REPLIES, load_topics, required_partitions
from stoplog.wire.audit import ChangeSource
from stoplog.wire.checks import Check
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.partition_count import PartitionCount
from stoplog.wire.replies import LookupReply

log = logging.getLogger(__name__)

SLICE: Final = 250
"""Checks of a list that are handled in one turn of the event loop, in about a millisecond. Others go on."""

MAX_UNANSWERED: Final = 2 * SLICE
"""Checks of one list that wait for their answers at the same time. Checks of others share batches with them,
and so wait for no more than these. Two slices keep both sides busy: one is decided while the next is sent."""


def steps_of_list(pending: Sequence[PendingAnswer], size: int) -> Iterator[slice | Future[Outcome]]:
    """Yield the steps of a list of checks: a slice to send, or an answer to wait for before the next slice.

    Without a store, only the first checks of a list wait for the deadline of their own: the rest does not
    wait for them.

    Args:
        pending: The answers of the slices before, to which the caller appends.
        size: Checks in the list.
    """
    waits = True
    for start in range(0, size, SLICE):
        if waits:
            for one in pending[max(start - MAX_UNANSWERED, 0) : max(start - SLICE, 0)]:
                if not isinstance(one, Answer) and not one.done():
                    yield one
                if is_degraded(one):
                    waits = False
                    break
        yield slice(start, start + SLICE)


class Limiter:
    """Asks the store whether a client may spend a cost, and fails open if no answer comes in time.

    ::

        async with Limiter("127.0.0.1:9092") as limiter:
            answer = await limiter.check("alice")

    :mod:`stoplog.client.fail_open` states the rule for checks that the store does not answer in time.

    Use a limiter only in the event loop in which it was started. For threads there is
    :class:`~stoplog.client.blocking.BlockingLimiter`. In a process that was forked, a limiter that ran in the
    parent starts anew at its first use there, as a node of its own.

    Args:
        kafka: Bootstrap servers (``host:port``, separated by commas), or all settings.
        reply_slot: Selects the partition of ``replies``, modulo the number of partitions. Consecutive slots
            read different partitions. ``None`` selects one at random.
        fields: Settings by name (:class:`~stoplog.client.settings.Settings`), if *kafka* is a string. All
            others are read from the environment, once.

    Attributes:
        identity: Names the clients of requests, by the settings.
        metrics: Counts and gauges; they may be read before the start and after the stop.
        self_start: Starts it at its first use, and stops it then.
        other_processes: Returns the states of the other processes on the same port; the gateway sets it.

    Raises:
        SettingsError: A setting is unknown or has an invalid value, or the packages for tracing are missing.
        TopicError: The topics file cannot be read.
    """

    _batcher: Batcher = cast(Batcher, NotStarted())
    _starts_itself = False
    """Whether its calls start it if nothing else has."""

    def __init__(self, kafka: str | Settings, *, reply_slot: int | None = None, **fields: Any) -> None:
        settings = read_settings(kafka=kafka, **fields) if isinstance(kafka, str) else kafka
        self.metrics = Metrics()
        self.other_processes: Callable[[], list[ProcessState]] = list
        self._settings = settings
        self.identity = Identity.of(settings)
        self._normalize = normalizer(settings.id_normalization)
        specs = load_topics(settings.topics)
        self._partitions_in_file = required_partitions(settings.topics, specs)
        self._count = PartitionCount(specs[CHECKS].partitions)
        slot = secrets.randbits(64) if reply_slot is None else reply_slot
        self._reply_partitions = specs[REPLIES].partitions
        self._reply_partition = slot % self._reply_partitions
        self._instrumentation = load_instrumentation(settings.tracing)
        self._node_id = settings.node_id or f"{socket.gethostname()}-{os.getpid()}"
        self._running = False
        self._loop: AbstractEventLoop | None = None
        self._replacement: asyncio.Task[None] | None = None
        self._growth = GrowthPause(self.metrics)
        self._deferred = DeferredSettlements(self.metrics, wall_ms)
        self._lines = WaitingLines(self.open_reservation, self.settle)
        self._engine = self._new_engine(None)
        # A call waits for a part of the publish timeout until it can begin. It then has its whole deadline.
        preparation_s = 0.8 * settings.publish_timeout_ms / 1000
        self.self_start: Final = SelfStart(self._start_here, self._stop_here, self._abandon, preparation_s)
        self.patience_s: Final = (settings.deadline_ms + settings.publish_timeout_ms) / 1000
        """Longest time in which a check is answered, whatever is broken."""
        call_after_fork(self)
        self.metrics.nodes = lambda: count_by_role(self._engine.nodes.alive(time.monotonic()))
        self.metrics.store = lambda: dict.fromkeys(STATES, False) | {self._engine.store_state()[0]: True}

    def _new_engine(self, paused: Engine | None) -> Engine:
        return Engine(
            self._settings,
            self.metrics,
            node_id=self._node_id,
            count=self._count,
            partitions_in_file=self._partitions_in_file,
            on_other_count=self._on_other_count,
            reply_partition=self._reply_partition,
            instrumentation=self._instrumentation,
            growth=self._growth,
            deferred=self._deferred,
            paused=paused,
        )

    async def __aenter__(self) -> Self:
        """Start. Without a broker the limiter starts as well, and checks fail open until there is one.

        A limiter that was stopped can be started again.

        Raises:
            RuntimeError: The limiter is running, or is being started or stopped.
            SettingsError: gevent or eventlet has replaced the threads of this process, or a running node
                compares ids in another form (``STOPLOG_ID_NORMALIZATION``).
            TopicError: The broker's topics contradict topics.yaml.
        """
        await self.self_start.enter()
        return self

    async def _start_here(self) -> None:
        await self._start_engine()
        self._running, self._loop = True, asyncio.get_running_loop()

    def start_on_first_use(self) -> None:
        """Have calls start the limiter if nothing else has, and wait for it up to the publish timeout.

        Such a limiter stops at the end of its event loop. A call that comes after a stop starts it again.
        """
        self._starts_itself = True

    async def _batcher_here(self) -> Batcher:
        """Return the batcher for a call in this event loop. Start the limiter if it must start itself.

        A batcher that has not started yet degrades all checks.
        """
        if not self._starts_itself or self._loop is asyncio.get_running_loop():
            return self._batcher
        return self._batcher if await self.self_start.wait() else self._engine.batcher

    async def _batcher_that_hears(self) -> Batcher:
        """As :meth:`_batcher_here`, and wait a little for heartbeats, which tell what the workers can do.

        Both waits together end in time for the deadline of the call.
        """
        until = time.monotonic() + self.self_start.patience_s
        batcher = await self._batcher_here()
        await self._engine.reservations.wait_for_heartbeats(until)
        return batcher

    def _abandon(self) -> None:
        """Forget the run of an event loop that was closed without stopping the limiter."""
        if hasattr(self._engine, "transport"):  # otherwise its start had not begun
            stop = self._engine.transport.stop
            threading.Thread(target=stop, name="stoplog-abandoned", daemon=True).start()
        self._forget_run()

    def _forget_run(self) -> None:
        self._running, self._loop, self._replacement = False, None, None
        self.__dict__.pop("_batcher", None)
        self._growth = GrowthPause(self.metrics)
        self._deferred = DeferredSettlements(self.metrics, wall_ms)
        self._lines = WaitingLines(self.open_reservation, self.settle)
        self.metrics.in_flight = 0
        self._engine = self._new_engine(None)
        self.self_start.forget()

    def after_fork(self) -> None:
        """Become a limiter of this process, which was forked: another node, which is not running.

        If it ran in the parent, its first call starts it. What the parent has counted is the parent's.
        """
        leak(self._engine)
        self._settings.forget_connection()
        name = self._settings.node_id
        self._node_id = f"{name or socket.gethostname()}-{os.getpid()}"
        self._reply_partition = secrets.randbelow(self._reply_partitions)
        self._starts_itself |= self._running
        self.metrics.reset()
        self._forget_run()

    async def _start_engine(self, paused: Engine | None = None) -> None:
        """Start an engine with the number of partitions in force, and use it from then on."""
        while True:
            engine = self._new_engine(paused)
            if not self._running:
                self._engine = engine
            try:
                await engine.start()
            except OtherPartitionCount as exc:
                self._count = exc.count
            else:
                self._engine, self._batcher = engine, engine.batcher
                return

    def _on_other_count(self, count: PartitionCount) -> None:
        """Replace the engine: another number is in force, or it has paused for a step of growing."""
        if self._replacement is None:
            self._count = count
            self._replacement = asyncio.create_task(self._replace_engine())

    async def _replace_engine(self) -> None:
        old = self._engine
        try:
            await self._start_engine(old if old.paused else None)
            old.failed.set()  # until_failure() now waits for the new engine
            await old.stop(replaced=True)
        except Exception as exc:
            log.exception("cannot change over to %s partitions", self._count.partitions)
            old.on_failure(f"the limiter cannot change over to {self._count.partitions} partitions: {exc!r}")
        finally:
            self._replacement = None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop. Every check that waits gets its answer first.

        Settlements that wait for the end of a pause (the number of partitions grows) are waited for no longer
        than :attr:`patience_s`.
        """
        if kind is GeneratorExit:
            return  # the event loop was closed, and garbage collection ends the block: nothing can be awaited
        await self._stop_here()

    async def _stop_here(self) -> None:
        """Stop the limiter, unless it does not run in this event loop."""
        if self._loop is not asyncio.get_running_loop():
            return  # the block was entered before a fork, and the limiter was not used since
        if self._deferred:
            await self._deferred.finish(lambda: self._batcher, self.patience_s)
        self._running, self._loop = False, None
        try:
            if self._replacement is not None:
                await asyncio.wait([self._replacement])  # an event loop that ends has cancelled it
                self._replacement = None
            await self._engine.stop()
        finally:
            self.self_start.release()

    # --- checks -----------------------------------------------------------------------------

    async def check(
        self,
        client: str,
        cost: int = 1,
        *,
        plan: str = "",
        resource: str = "",
        on_unavailable: OnUnavailable = "allow",
    ) -> Answer:
        """Spend *cost* if *client*'s limits allow it. A cost of 0 spends nothing.

        Args:
            client: Id of the client.
            cost: Requests to charge.
            plan: Plan whose limits apply if the client has none of its own; empty for none.
            resource: Resource with limits and counters of its own; empty for none.
            on_unavailable: ``deny`` makes the check fail closed: if the store does not decide it in time, it
                is denied. The check may still be counted. By default, it fails open.

        Raises:
            InvalidInput: An id, the cost or *on_unavailable* is invalid; nothing was published.
            UpgradeFirst: The name of the plan states limits, and a worker of an older release is alive.
        """
        check = Check(client, cost, plan, resource)
        validate(check)
        closed = fails_closed(on_unavailable)
        if plan[:1] == PLAN_MARK:
            batcher = await self._batcher_that_hears()
            self.require_stated_plans(plan)
        else:
            batcher = await self._batcher_here() if self._starts_itself else self._batcher
        pending = batcher.ask(self._normal(check), closed)
        return pending if isinstance(pending, Answer) else answer_of(await pending)

    def require_stated_plans(self, plan: str) -> None:
        """Refuse *plan* if its name states limits that a worker cannot read. Do not wait.

        For callers of :meth:`ask`. Workers whose heartbeats have not arrived yet are not known.

        Args:
            plan: A plan whose name begins with :data:`~stoplog.policy.PLAN_MARK`.

        Raises:
            UpgradeFirst: A worker of an older release is alive.
        """
        # It would apply the default, and so would its lane.
        old = self._engine.workers_without_stated_plans()
        if old and plan_policy(plan) is not None:
            raise UpgradeFirst(f"plans that state limits, such as {plan!r},", sorted(old))

    def ask(self, check: Check, fails_closed: bool = False) -> PendingAnswer:
        """Return the answer to a check that is known to be valid, or a future for it. Do not wait.

        Args:
            check: The check.
            fails_closed: Deny the check if the store does not decide it; by default, allow it.
        """
        return self._batcher.ask(check if self._normalize is None else self._normal(check), fails_closed)

    def answer_at_once(self, check: Check, fails_closed: bool = False) -> PendingAnswer:
        """As :meth:`ask`, but degrade the check with the reason ``overload``. It is published and counted."""
        return self._batcher.answer_at_once(self._normal(check), fails_closed)

    async def check_many(
        self, checks: Sequence[Check], *, on_unavailable: OnUnavailable | Sequence[OnUnavailable] = "allow"
    ) -> list[Answer]:
        """Check a list of any length. The answers have the same order.

        Args:
            checks: The checks.
            on_unavailable: As in :meth:`check`, for all checks, or a sequence with one value for each.

        Raises:
            InvalidInput: An id, a cost or *on_unavailable* is invalid. The error names the first one, for
                example ``checks[3].client_id``; nothing was published.
            UpgradeFirst: The name of a plan states limits, and a worker of an older release is alive.
        """
        closed = _each_fails_closed(on_unavailable, len(checks))
        stated: dict[str, None] = {}
        for index, check in enumerate(checks):
            try:
                validate(check)
            except InvalidInput as exc:
                raise exc.within(f"checks[{index}].") from None
            if check.plan[:1] == PLAN_MARK:
                stated[check.plan] = None
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        if self._normalize is not None:
            checks = [self._normal(check) for check in checks]
        batcher = await (self._batcher_that_hears() if stated else self._batcher_here())
        for plan in stated:
            self.require_stated_plans(plan)
        running = self._running
        pending: list[PendingAnswer] = []
        for step in steps_of_list(pending, len(checks)):
            if isinstance(step, slice):
                if step.start:
                    await asyncio.sleep(0)
                ask = (self._batcher if running else batcher).ask  # a pause replaces the limiter's batcher
                pending += [ask(*asked) for asked in zip(checks[step], closed[step], strict=True)]
            else:
                await step
        return [one if isinstance(one, Answer) else answer_of(await one) for one in pending]

    async def publish(self, client: str, cost: int = 1, *, plan: str = "", resource: str = "") -> None:
        """Count *cost* without waiting for an answer.

        Raises:
            InvalidInput: An id or the cost is invalid.
        """
        check = Check(client, cost, plan, resource)
        validate(check)
        (await self._batcher_here()).publish(self._normal(check))

    async def peek(self, client: str, *, plan: str = "", resource: str = "") -> Answer:
        """Return what a check of *client* would leave, without spending anything.

        Raises:
            InvalidInput: An id is invalid.
        """
        return await self.check(client, 0, plan=plan, resource=resource)

    async def wait(
        self,
        client: str,
        cost: int = 1,
        timeout: float | None = None,  # noqa: ASYNC109 - an attempt under way is awaited, not cancelled
        *,
        plan: str = "",
        resource: str = "",
        on_unavailable: OnUnavailable = "allow",
    ) -> Answer:
        """Wait until *client*'s limits allow *cost*, and spend it.

        Those who wait for the same client, plan and resource in this process are served in order, and only
        the first of them asks the store. Processes do not keep an order among each other. A call that is
        cancelled spends nothing.

        Args:
            client: As in :meth:`check`.
            cost: As in :meth:`check`.
            timeout: Longest time to wait, s; ``None`` for no bound. An attempt that is under way at its end
                still counts.
            plan: As in :meth:`check`.
            resource: As in :meth:`check`.
            on_unavailable: As in :meth:`check`.

        Returns:
            The answer, which allows the cost; or, at once, a degraded answer if the store does not answer.

        Raises:
            InvalidCost: The cost exceeds a limit, so waiting cannot help.
            InvalidInput: Another argument is invalid.
            WaitTimeout: The limits did not allow the cost in time. Nothing was charged.
        """
        check = Check(client, cost, plan, resource)
        validate(check)
        await self._batcher_that_hears()  # not in line, where each call would wait after the one before
        return await self._lines.wait(check, timeout, on_unavailable)

    # --- reservations -------------------------------------------------------------------------

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
    ) -> Held:
        """Hold *cost* for the time of an ``async with`` block, whose use is known only afterwards.

        ::

            async with limiter.reserve("team-7", 4_000) as held:
                held.used = await call_the_model()

        The end of the block charges ``held.used``, or all of *cost* if the block does not set it. If the
        block raises, everything is given back.

        Args:
            client: Id of the client.
            cost: Units to hold. They count in full until the end of the block.
            ttl_ms: Milliseconds after which the reservation ends by itself, at most an hour. Then all of it
                is charged.
            plan: As in :meth:`check`.
            resource: As in :meth:`check`.
            on_unavailable: As in :meth:`check`.
            on_error: ``charge`` charges a block that raises like one that does not.

        Raises:
            Denied: On entering, if the reservation is denied. The block does not run.
            InvalidInput: On entering, if an argument is invalid; on leaving, if ``held.used`` is.
        """
        return Held(
            partial(
                self.open_reservation,
                client,
                cost,
                ttl_ms=ttl_ms,
                plan=plan,
                resource=resource,
                on_unavailable=on_unavailable,
            ),
            self.settle,
            cost,
            on_error,
        )

    async def open_reservation(
        self,
        client: str,
        cost: int = 1,
        *,
        ttl_ms: int = DEFAULT_TTL_MS,
        plan: str = "",
        resource: str = "",
        on_unavailable: OnUnavailable = "allow",
    ) -> Reservation:
        """Hold *cost* until :meth:`settle` is called with the id of the answer, by whichever process.

        The arguments are those of :meth:`reserve`. A reservation that the store denied has no id.

        Raises:
            InvalidInput: An argument is invalid; nothing was published.
            UpgradeFirst: A worker of an older release is alive, so no reservation can be granted yet.
        """
        check = Check(client, cost, plan, resource)
        validate(check)
        check_ttl(ttl_ms)
        closed = fails_closed(on_unavailable)
        batcher = await self._batcher_that_hears()
        if plan[:1] == PLAN_MARK:
            self.require_stated_plans(plan)
        return await self._engine.reservations.open(batcher, self._normal(check), ttl_ms, closed)

    async def settle(self, reservation_id: str, used: int) -> Settled:
        """Charge *used* units of a reservation and give back the rest. A repeated call changes nothing.

        Args:
            reservation_id: The id of the reservation.
            used: Units to charge; 0 gives back everything. More than were held are charged as well.

        Returns:
            What became of the reservation.

        Raises:
            InvalidInput: An argument is invalid; nothing was published.
        """
        batcher = await self._batcher_here()
        return await self._engine.reservations.settle(batcher, reservation_id, used)

    def open_reservation_at_once(self, check: Check, ttl_ms: int, fails_closed: bool = False) -> Reservation:
        """As :meth:`open_reservation`, but degrade it with the reason ``overload``. It is published."""
        validate(check)
        check_ttl(ttl_ms)
        check = self._normal(check)
        return self._engine.reservations.open_at_once(self._batcher, check, ttl_ms, fails_closed)

    def settle_at_once(self, reservation_id: str, used: int) -> Settled:
        """As :meth:`settle`, but do not wait for the store. The settlement is published, and unconfirmed."""
        return self._engine.reservations.settle_at_once(self._batcher, reservation_id, used)

    async def refund(
        self, client: str, cost: int = 1, *, refund_id: str | None = None, plan: str = "", resource: str = ""
    ) -> Refund:
        """Give *cost* back to *client*, which was charged, if its limits are refundable.

        It reduces the newest charges, and never below 0. For a cost that is known only afterwards, use
        :meth:`reserve`: requests that pass because of a refund are outside the guarantee of the limits.

        Args:
            client: Id of the client.
            cost: Units to give back.
            refund_id: Identifies the refund. A repeated call with the same id, client and resource gives
                nothing back for one window. A new id by default, which the answer contains.
            plan: As in :meth:`check`.
            resource: As in :meth:`check`.

        Returns:
            What became of the refund.

        Raises:
            UpgradeFirst: A worker of an older release is alive, so no refund can be made yet.
            InvalidInput: An argument is invalid; nothing was published. Or *refund_id* is that of a
                reservation.
        """
        check = Check(client, cost, plan, resource)
        validate(check)
        batcher = await self._batcher_that_hears()
        return await self._engine.reservations.refund_once(batcher, self._normal(check), refund_id)

    def ask_charge(self, check: Check) -> PendingAnswer:
        """Charge the cost of *check*, which is known to be valid, although it may exceed the limits.

        It is for costs that become known after the request, and were not reserved. Return the answer, which
        is never a denial, or a future for it. Do not wait.
        """
        return self._engine.reservations.charge(self._batcher, self._normal(check))

    def ask_refund(self, check: Check) -> PendingAnswer:
        """Return the cost of *check*, which is known to be valid, to its client.

        As :meth:`refund`, but two calls are two refunds. If the client's limits are not refundable, it
        changes nothing. Otherwise as :meth:`ask_charge`.
        """
        return self._engine.reservations.refund(self._batcher, self._normal(check))

    # --- clients and limits -------------------------------------------------------------------

    async def look_up(self, client: str, *, plan: str = "", resource: str = "") -> LookupReply:
        """Return the limits of *client*, its use of each window, and what is held. Spends nothing.

        Raises:
            Busy: Too many lookups are in progress.
            InvalidInput: An id is invalid.
            Unavailable: The client's worker did not answer.
        """
        check = Check(client, 0, plan, resource)
        validate(check)
        await self._batcher_here()
        check = self._normal(check)
        return await self._engine.lookup.look_up(check.client, check.plan, check.resource)

    async def set_limits(
        self, key: UpdateKey, policy: Policy | None, *, source: ChangeSource | None = None
    ) -> Applied:
        """Set the policy of a client, a plan or the default (``key.kind``); ``None`` deletes it.

        Args:
            key: Kind, id and resource.
            policy: The new policy.
            source: The source of the change, for the audit. ``None``: ``sdk``, with the name of this node as
                its address.

        Returns:
            The result, once the workers have applied the change and no gateway denies by the old policy.
            After ``apply_timeout_ms`` it has ``applied`` false.

        Raises:
            InvalidInput: An id is invalid.
            Unavailable: The change could not be published.
            UpgradeFirst: The policy has ``in flight`` or ``refundable``, and a worker of an older release,
                which would refuse it, is alive.
        """
        if policy is not None and (policy.in_flight is not None or policy.refundable):
            await self._batcher_here()
            if old := self._engine.workers_without_holds():
                raise UpgradeFirst('limits with "in flight" or "refundable"', old)
        return await self._change(key, policy, source)

    async def get_limits(self, key: UpdateKey) -> Policy | None:
        """Return the policy stored under exactly this key; ``None`` if there is none.

        Raises:
            Busy: Too many other reads of limits wait.
            Unavailable: The broker did not answer.
        """
        await self._batcher_here()
        return await self._engine.admin.get(self._normal_key(key))

    async def list_limits(
        self, after: str | None = None, limit: int = 100, kind: str | None = None
    ) -> LimitsPage:
        """Return one page of the stored policies.

        Args:
            after: The ``next`` of the previous page; ``None`` for the first page.
            limit: Entries of the page, 1 to 1,000.
            kind: ``client``, ``plan`` or ``default``, to list only these.

        Raises:
            Busy: Too many other reads of limits wait.
            InvalidInput: *after*, *limit* or *kind* is invalid.
            Unavailable: The broker did not answer.
        """
        await self._batcher_here()
        return await self._engine.admin.page(after, limit, kind)

    async def limits_history(
        self, key: UpdateKey, before: str | None = None, limit: int = 100
    ) -> HistoryPage:
        """Return one page of the changes of the limits under *key*, and of resets, the newest first.

        Args:
            key: Kind, id and resource.
            before: The ``next`` of the previous page; ``None`` for the newest changes.
            limit: Entries of the page, 1 to 1,000.

        Raises:
            Busy: Too many other reads of limits wait.
            InvalidInput: An id, *before* or *limit* is invalid.
            Unavailable: The broker did not answer, or there is no topic ``audit``.
        """
        await self._batcher_here()
        return await self._engine.admin.history(self._normal_key(key), before, limit)

    async def reset(self, client: str, resource: str = "", *, source: ChangeSource | None = None) -> Applied:
        """Forget what *client* has spent. The rest is as in :meth:`set_limits`."""
        return await self._change(UpdateKey("reset", client, resource), None, source)

    async def _change(self, key: UpdateKey, policy: Policy | None, source: ChangeSource | None) -> Applied:
        await self._batcher_here()
        source = source or ChangeSource("sdk", self._node_id)
        applied = await self._engine.admin.write(self._normal_key(key), policy, source)
        if applied.applied:
            # By then every gateway has read the change, or lost the proof by which it denies.
            await asyncio.sleep(PROOF_S)
        return applied

    def _normal(self, check: Check) -> Check:
        """Return *check* with its ids in the normal form."""
        normal = self._normalize
        if normal is None:
            return check
        return Check(normal(check.client), check.cost, normal(check.plan), normal(check.resource))

    def _normal_key(self, key: UpdateKey) -> UpdateKey:
        normal = self._normalize
        return key if normal is None else UpdateKey(key.kind, normal(key.id), normal(key.resource))

    # --- state ------------------------------------------------------------------------------

    def status(self) -> Status:
        """Return the mode, the state of the store and the nodes, for all processes on this port. No I/O."""
        return merge_status(self._engine.status(), [other.status for other in self.other_processes()])

    def process_state(self) -> ProcessState:
        """Return what this process shares with the other processes on its port."""
        return self._engine.process_state()

    def traffic(self) -> Traffic:
        """Return what was counted so far. No I/O."""
        return traffic(self.metrics, wall_ms())

    def most_rejected(self) -> list[Rejected]:
        """Return up to 100 clients rejected most in the last minutes, by all processes on this port."""
        others = (other.rejected for other in self.other_processes())
        return ranked(merge_summaries((self._engine.rejections.summary(), *others)))

    @property
    def node_id(self) -> str:
        """The name of this limiter in the list of nodes."""
        return self._node_id

    @property
    def running(self) -> bool:
        """Whether the limiter was started and not stopped since."""
        return self._running

    async def ready(self) -> Readiness:
        """Return whether the store answers checks of at least one partition; if not, why.

        After a start the limiter is not ready until every partition has answered once.
        """
        return self._engine.readiness()

    @property
    def failure(self) -> str | None:
        """Why this limiter will fail open from now on; ``None`` while it works. A failure is a bug."""
        return self._engine.failure

    async def until_failure(self) -> None:
        """Return once there is a :attr:`failure`. The program should then start a new process."""
        while self.failure is None:
            await self._engine.failed.wait()


def _each_fails_closed(on_unavailable: OnUnavailable | Sequence[OnUnavailable], checks: int) -> list[bool]:
    if isinstance(on_unavailable, str):
        return [fails_closed(on_unavailable)] * checks
    if len(on_unavailable) != checks:
        remedy = "give one value, or one for each check"
        raise InvalidInput("on_unavailable", f"{len(on_unavailable)} values for {checks} checks", remedy)
    return [fails_closed(one) for one in on_unavailable]


def validate(check: Check) -> None:
    """Check the ids and the cost of *check*.

    Raises:
        InvalidInput: One of them is invalid.
    """
    check_id(check.client, "client_id")
    if check.plan:
        check_id(check.plan, "plan")
    if check.resource:
        check_id(check.resource, "resource")
    check_cost(check.cost)
