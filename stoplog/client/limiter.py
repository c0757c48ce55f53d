"""The limiter: may this client spend this now? The SDK, and what the HTTP routes call."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, NoReturn, Self, cast

import msgspec

from stoplog import __version__
from stoplog.client.answer import Answer, PendingAnswer, answer_of
from stoplog.client.batcher import Batcher
from stoplog.client.cluster_status import (
    CONNECTING,
    STATES,
    TOPICS_WRONG,
    UNREACHABLE,
    Node,
    ProcessState,
    Readiness,
    Status,
    count_by_role,
    merge_status,
    store_state,
)
from stoplog.client.degraded_mode import Mode
from stoplog.client.deny_cache import PROOF_S, DenyCache
from stoplog.client.limits_admin import Admin, Applied, LimitsPage, StoredLimit
from stoplog.client.metrics import Metrics
from stoplog.client.node_registry import NodeRegistry
from stoplog.client.settings import Settings, read_settings
from stoplog.client.top_rejected import Rejected, Rejections, merge_summaries, ranked
from stoplog.client.traffic import Traffic, traffic
from stoplog.client.transport.broker_monitor import BrokerView
from stoplog.client.transport.kafka_transport import Transport
from stoplog.client.usage_lookup import Lookup
from stoplog.clock import now
from stoplog.errors import InvalidInput, TopicError, Unavailable
from stoplog.policy import Policy, check_cost, check_id
from stoplog.topics import CHECKS, REPLIES, load_topics
from stoplog.wire.checks import Check, Denials, encode_denials
from stoplog.wire.heartbeats import HEARTBEAT_S, Heartbeat, StampedHeartbeat, encode_heartbeat
from stoplog.wire.limit_updates import Update, UpdateKey
from stoplog.wire.replies import LookupReply, Reply, UpdateReply

__all__ = [
    "Answer",
    "Applied",
    "Check",
    "Limiter",
    "LimitsPage",
    "Node",
    "Readiness",
    "Status",
    "StoredLimit",
]

log = logging.getLogger(__name__)

START_S: Final = 5.0
"""A start waits at most this long for the broker's first word, then goes on without."""

SUM_S: Final = 1.0
"""Between two records of what was denied without asking."""

TICK_S: Final = 0.5
"""Between two rounds of probing open partitions and looking whether degraded mode is over."""


class _NotEntered:
    """Stands for an attribute that a limiter has only once it was entered."""

    def __get__(self, limiter: Limiter | None, owner: type[Limiter]) -> NoReturn:
        raise RuntimeError("the limiter was not started: use it within `async with Limiter(...):`")


class Limiter:
    """Asks the store, and lets through when it does not answer in time.

    ::

        async with Limiter("127.0.0.1:9092") as limiter:
            answer = await limiter.check("alice")

    Everything here belongs to the event loop it was entered in; threads have
    :class:`~stoplog.client.blocking.BlockingLimiter`. ``metrics`` can be read before and after.

    Args:
        kafka: Bootstrap servers, ``host:port`` and comma separated; or all the settings.
        reply_slot: Which partition of ``replies`` it reads, modulo their number: slots in a row read
            different ones. ``None``: any.
        fields: Settings by name (:class:`~stoplog.client.settings.Settings`), beside bootstrap servers only. What
            is not given comes from the environment, read here and never again.

    Raises:
        SettingsError: there is no such setting, or it cannot have that value.
        TopicError: the topics file cannot be read.
    """

    _batcher: Batcher = cast(Batcher, _NotEntered())
    _admin: Admin = cast(Admin, _NotEntered())
    _lookup: Lookup = cast(Lookup, _NotEntered())

    def __init__(self, kafka: str | Settings, *, reply_slot: int | None = None, **fields: Any) -> None:
        settings = read_settings(kafka=kafka, **fields) if isinstance(kafka, str) else kafka
        self.metrics = Metrics()
        self.others: Callable[[], list[ProcessState]] = list
        """What the processes that share its port said of themselves."""
        self._settings = settings
        specs = load_topics(settings.topics)
        self._partitions = specs[CHECKS].partitions
        slot = secrets.randbits(64) if reply_slot is None else reply_slot
        self._reply_partition = slot % specs[REPLIES].partitions
        self._kind = _traced() if settings.tracing else Batcher
        self._node_id = settings.node_id or f"{socket.gethostname()}-{os.getpid()}"
        self._started = False
        self._know_nothing()
        self.metrics.nodes = lambda: count_by_role(self._nodes.alive(time.monotonic()))
        self.metrics.store = lambda: dict.fromkeys(STATES, False) | {self._store()[0]: True}

    def _know_nothing(self) -> None:
        """Be as new: what an earlier run learned, and answers still on their way to it, are not its."""
        self._incarnation = secrets.randbits(64)
        self.metrics.degraded_partitions = self.metrics.deny_entries = 0
        self._mode = Mode(self.metrics, time.monotonic, _wall_ms)
        self._nodes = NodeRegistry()
        self._rejections = Rejections(time.monotonic)
        self._view: BrokerView | None = None
        self._positioned = False
        self._failed = asyncio.Event()
        self._failure: str | None = None

    async def __aenter__(self) -> Self:
        """Start. A broker that is not there is no error: checks are let through until it is.

        What was stopped can be started again.

        Raises:
            RuntimeError: it runs already.
            TopicError: the broker's topics contradict topics.yaml.
        """
        if self._started:
            raise RuntimeError("the limiter runs already: enter it once, and share it")
        self._know_nothing()
        loop = asyncio.get_running_loop()
        settings = self._settings
        self._settled = asyncio.Event()
        self._denials = DenyCache(self.metrics, self._partitions, settings.deny_cache, now)
        self._transport = Transport(
            settings.bootstrap,
            incarnation=self._incarnation,
            reply_partition=self._reply_partition,
            publish_timeout_ms=settings.publish_timeout_ms,
            follow=self._partitions if settings.deny_cache else 0,
            loop=loop,
            listener=self,
        )
        self._batcher = self._kind(
            loop,
            self._transport,
            self.metrics,
            self._mode,
            self._denials,
            self._rejections,
            partitions=self._partitions,
            deadline_s=settings.deadline_ms / 1000,
            misses=settings.breaker_misses,
            max_in_flight=settings.max_in_flight,
        )
        self._admin = Admin(
            self._transport,
            partitions=self._partitions,
            prefix=self._transport.prefix,
            timeout_s=settings.apply_timeout_ms / 1000,
        )
        self._lookup = Lookup(
            self._transport, partitions=self._partitions, prefix=self._transport.look_prefix
        )
        self._transport.start()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(START_S):
                    await self._settled.wait()
            if (wrong := self._wrong_topics()) is not None:
                raise TopicError(wrong)
        except BaseException:
            await asyncio.to_thread(self._transport.stop)
            raise
        self._started = True
        self._chores = loop.create_task(self._do_chores())
        self._chores.add_done_callback(self._chores_ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop: every check still waiting gets its answer first."""
        self._started = False
        self._batcher.close()
        if waiting := self._batcher.waiting():
            await asyncio.wait(waiting, timeout=self._settings.deadline_ms / 1000)
        self._batcher.let_go()
        self._chores.cancel()
        self._log_denials()
        self._beat(stopping=True)
        await asyncio.to_thread(self._transport.stop)

    async def check(self, client: str, cost: int = 1, *, plan: str = "", resource: str = "") -> Answer:
        """Spend *cost* of *client*'s limit if it allows that; a cost of 0 only looks.

        Raises:
            InvalidInput: an id or a cost that cannot be used; nothing was published.
        """
        check = Check(client, cost, plan, resource)
        _validate(check)
        asked = self.ask(check)
        return asked if isinstance(asked, Answer) else answer_of(await asked)

    def ask(self, check: Check) -> PendingAnswer:
        """As :meth:`check`, of one whose ids and cost were looked at; for who does not await."""
        return self._batcher.ask(check)

    async def check_many(self, checks: Sequence[Check]) -> list[Answer]:
        """Check a list of any length; answers come in its order.

        Raises:
            InvalidInput: names the first offender, ``checks[3].client_id``; nothing was published.
        """
        for index, check in enumerate(checks):
            try:
                _validate(check)
            except InvalidInput as exc:
                raise exc.within(f"checks[{index}].") from None
        outcomes = [self.ask(check) for check in checks]
        return [o if isinstance(o, Answer) else answer_of(await o) for o in outcomes]

    async def publish(self, client: str, cost: int = 1, *, plan: str = "", resource: str = "") -> None:
        """Have *cost* counted, without waiting for an answer.

        Raises:
            InvalidInput: as :meth:`check`.
        """
        check = Check(client, cost, plan, resource)
        _validate(check)
        self._batcher.publish(check)

    async def peek(self, client: str, *, plan: str = "", resource: str = "") -> Answer:
        """How *client* stands; nothing is spent.

        Raises:
            InvalidInput: as :meth:`check`.
        """
        return await self.check(client, 0, plan=plan, resource=resource)

    async def look_up(self, client: str, *, plan: str = "", resource: str = "") -> LookupReply:
        """What *client* is held to, and what it has used of each window; nothing is spent.

        Raises:
            Busy: too many others are being looked up.
            InvalidInput: as :meth:`check`.
            Unavailable: the worker that would know did not answer.
        """
        _validate(Check(client, 0, plan, resource))
        return await self._lookup.look(client, plan, resource)

    async def set_limits(self, key: UpdateKey, policy: Policy | None) -> Applied:
        """Hold a client, plan or the default (``key.kind``) to *policy*; ``None`` deletes what it had.

        Returns:
            When the owners have applied it and no gateway denies by what was before, or after
            ``apply_timeout_ms`` with ``applied`` false.

        Raises:
            InvalidInput: an id that cannot be used.
            Unavailable: it could not be published.
        """
        return await self._change(key, policy)

    async def get_limits(self, key: UpdateKey) -> Policy | None:
        """The policy stored under exactly this key; ``None`` if there is none.

        Raises:
            Busy: too many other reads of limits are waiting.
            Unavailable: the broker did not answer.
        """
        return await self._admin.get(key)

    async def list_limits(
        self, after: str | None = None, limit: int = 100, kind: str | None = None
    ) -> LimitsPage:
        """One page of the stored policies.

        Args:
            after: ``next`` of the page before; ``None``: from the beginning.
            limit: Entries of the page, 1 to 1,000.
            kind: ``client``, ``plan`` or ``default`` only.

        Raises:
            Busy: too many other reads of limits are waiting.
            InvalidInput: *after*, *limit* or *kind* is none of these.
            Unavailable: the broker did not answer.
        """
        return await self._admin.page(after, limit, kind)

    async def reset(self, client: str, resource: str = "") -> Applied:
        """Forget what *client* has spent; as :meth:`set_limits`."""
        return await self._change(UpdateKey("reset", client, resource), None)

    async def _change(self, key: UpdateKey, policy: Policy | None) -> Applied:
        applied = await self._admin.write(key, policy)
        if applied.applied:
            # Until each gateway has heard of it, or lost its proof that there was nothing to hear.
            await asyncio.sleep(PROOF_S)
        return applied

    def status(self) -> Status:
        """Mode, nodes and the store's state, as known now, of all processes on this port; asks nobody."""
        return merge_status(self._status(), [other.status for other in self.others()])

    def _status(self) -> Status:
        """Of this one alone."""
        mode = self._mode
        store, store_why = self._store()
        return Status(
            mode="degraded" if mode.degraded else "normal",
            since_ms=mode.since_ms,
            why=mode.why,
            degraded_partitions=sorted(mode.partitions),
            let_through=mode.failed_open,
            uncounted=mode.uncounted,
            store=store,
            store_why=store_why,
            partitions=self._partitions,
            nodes=self._nodes.alive(time.monotonic()),
            degraded_processes=int(mode.degraded),
        )

    def state(self) -> ProcessState:
        """What those that share its port are to know of this one."""
        return ProcessState(msgspec.structs.replace(self._status(), nodes=[]), self._rejections.summary())

    def traffic(self) -> Traffic:
        """What was counted so far; costs no I/O."""
        return traffic(self.metrics, _wall_ms())

    def most_rejected(self) -> list[Rejected]:
        """The clients rejected most in the last minutes, by all processes on this port; at most 100."""
        others = (other.rejected for other in self.others())
        return ranked(merge_summaries((self._rejections.summary(), *others)))

    @property
    def node_id(self) -> str:
        """This limiter's name among the nodes."""
        return self._node_id

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped yet."""
        return self._started

    @property
    def failure(self) -> str | None:
        """Why this limiter will never ask the store again and lets everything through; ``None``: it asks."""
        return self._failure

    async def until_failure(self) -> None:
        """Return when there is a :attr:`failure`, which is a bug: what runs the limiter should begin anew."""
        await self._failed.wait()

    async def ready(self) -> Readiness:
        """Whether checks of one partition at least are answered from the store; if not, why.

        From a start until every partition has answered once it is not.
        """
        reason = self._failure or self._wrong_topics() or self._unanswered()
        return Readiness(reason is None, reason)

    def _unanswered(self) -> str | None:
        """Why not one partition's checks are answered, or some have never been; ``None``: they are.

        The breakers know. A broker that is slow to tell its metadata is a reason to ask them
        (:meth:`_do_chores`), no more.
        """
        state, why = self._store()
        if state == CONNECTING:
            return why
        broker = why if state in (UNREACHABLE, TOPICS_WRONG) else None
        if not self._positioned:
            return broker or f"no position in topic {REPLIES} yet"
        if unproven := self._batcher.unproven:
            listed = ", ".join(map(str, unproven))
            return broker or f"partition {listed} has not answered yet: is a worker running?"
        return self._mode.why if len(self._mode.partitions) == self._partitions else None

    # --- what the transport tells -----------------------------------------------------------

    def positioned(self) -> None:
        """From now on no reply can be missed."""
        self._positioned = True
        if self._view is not None:
            self._settled.set()

    def replied(self, replies: list[Reply]) -> None:
        """Replies to this gateway's batches."""
        self._batcher.replied(replies)

    def told(self, words: list[UpdateReply]) -> None:
        """Words on this gateway's updates."""
        self._admin.told(words)

    def looked(self, looks: list[LookupReply]) -> None:
        """Replies to this gateway's looks."""
        self._lookup.looked(looks)

    def heard(self, beats: list[StampedHeartbeat]) -> None:
        """Beats of any node."""
        self._nodes.record(beats, time.monotonic())

    def updated(self, updates: list[tuple[int, Update]]) -> None:
        """Limit updates that anybody wrote, each with its partition."""
        for partition, update in updates:
            self._denials.heard(partition, update.key, update.version)

    def followed(self, partitions: list[int], at: float) -> None:
        """All updates written to *partitions* before *at* have been told."""
        self._denials.proven(partitions, at)

    def wants_proof(self) -> bool:
        """Whether :meth:`followed` would be of use; asked in another thread."""
        return self._denials.wants_proof

    def unlogged(self, checks: int) -> None:
        """Sums of *checks* denied checks could not be published."""
        self.metrics.deny_unlogged += checks

    def undelivered(self, failures: list[tuple[int, int]]) -> None:
        """Batches that could not be published: number, checks."""
        for number, checks in failures:
            self._batcher.undelivered(number, checks)

    def broker_down(self, why: str) -> None:
        """No broker can be reached."""
        self._view = BrokerView(error=why)
        self._batcher.broker_down(why)
        self._settled.set()

    def undecodable(self, records: int) -> None:
        """Records of ``replies`` and ``nodes`` that were passed over."""
        self.metrics.undecodable += records

    def failed(self, why: str) -> None:
        """The transport has ended: nothing more will be told."""
        self._failure = why
        self._failed.set()

    def broker_seen(self, view: BrokerView) -> None:
        """A look at the broker's metadata."""
        before, self._view = self._wrong_topics(), view
        wrong = self._wrong_topics()
        if self._started and wrong is not None and wrong != before:
            log.error("checks are let through until this is mended: %s", wrong)
        if self._positioned or view.error is not None:
            self._settled.set()

    # --- chores -----------------------------------------------------------------------------

    def _store(self) -> tuple[str, str | None]:
        return store_state(self._view, self._partitions, self._nodes.alive(time.monotonic()))

    def _wrong_topics(self) -> str | None:
        """What is wrong with the topics that are there; one that is missing may come yet."""
        state, why = self._store()
        return why if state == TOPICS_WRONG and self._view is not None and self._view.partitions else None

    async def _do_chores(self) -> None:
        beat_at = sum_at = 0.0
        while True:
            self._batcher.probe(doubtful=self._view is not None and self._view.error is not None)
            self._mode.tick(calm=self._batcher.calm)
            if (at := time.monotonic()) >= beat_at:
                beat_at = at + HEARTBEAT_S
                self._beat()
            if at >= sum_at:
                sum_at = at + SUM_S
                self._rejections.tick()
                self._log_denials()
            await asyncio.sleep(TICK_S)

    def _chores_ended(self, chores: asyncio.Task[None]) -> None:
        if not chores.cancelled() and (error := chores.exception()) is not None:
            log.critical("the limiter's chores cannot go on", exc_info=error)
            self.failed(f"the limiter's chores ended: {error!r}")

    def _log_denials(self) -> None:
        for partition, sums in self._denials.take_sums():
            for row in sums:
                self._rejections.add(row.client, row.checks)
            checks = sum(row.checks for row in sums)
            value = encode_denials(Denials(self._incarnation, sums))
            try:
                self._transport.send_denials(partition, value, checks)
            except Unavailable:
                self.unlogged(checks)

    def _beat(self, *, stopping: bool = False) -> None:
        beat = Heartbeat(
            self._node_id, "gateway", __version__, socket.gethostname(), _wall_ms(), stopping=stopping
        )
        with suppress(Unavailable):
            self._transport.send_beat(beat.id.encode(), encode_heartbeat(beat))


def _traced() -> type[Batcher]:
    """The batcher that tells of checks by OpenTelemetry.

    Raises:
        SettingsError: the packages are not there.
    """
    from stoplog.client.tracing import TracedBatcher

    return TracedBatcher


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _validate(check: Check) -> None:
    check_id(check.client, "client_id")
    if check.plan:
        check_id(check.plan, "plan")
    if check.resource:
        check_id(check.resource, "resource")
    check_cost(check.cost)
