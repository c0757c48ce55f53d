"""One run of a limiter: its parts, the events of the transport, and housekeeping."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn, cast

import msgspec

from stoplog import __version__
from stoplog.client.batcher import Batcher
from stoplog.client.cluster_status import (
    CONNECTING,
    TOPICS_WRONG,
    UNREACHABLE,
    ProcessState,
    Readiness,
    Status,
    describe_growth,
    store_state,
)
from stoplog.client.deferred_settlements import DeferredSettlements
from stoplog.client.degraded_mode import DegradedMode
from stoplog.client.deny_cache import DenyCache
from stoplog.client.fail_open import GROWING, STOPPING
from stoplog.client.growth_pause import GrowthPause
from stoplog.client.instrumentation import Instrumentation
from stoplog.client.lease_cache import LeaseCache
from stoplog.client.limits_admin import LimitsAdmin
from stoplog.client.metrics import Metrics
from stoplog.client.node_registry import EXPIRY_S, NodeRegistry
from stoplog.client.overload_report import OverloadReport
from stoplog.client.reservations import Reservations
from stoplog.client.settings import Settings
from stoplog.client.top_rejected import Rejections
from stoplog.client.transport.broker_view import BrokerView
from stoplog.client.transport.kafka_transport import KafkaTransport
from stoplog.client.usage_lookup import UsageLookup
from stoplog.clock import now
from stoplog.errors import SettingsError, TopicError, Unavailable
from stoplog.identity.normalization import NONE
from stoplog.kafka.partition_count import explain_difference
from stoplog.topics import CHECKS, REPLIES
from stoplog.wire.checks import Denials, encode_denials, encode_settlements
from stoplog.wire.format import NO_REPLY
from stoplog.wire.heartbeats import HEARTBEAT_S, Heartbeat, StampedHeartbeat, encode_heartbeat
from stoplog.wire.holds import SettlementBatch
from stoplog.wire.limit_updates import Update
from stoplog.wire.partition_count import PartitionCount
from stoplog.wire.replies import LookupReply, Reply, UpdateReply

log = logging.getLogger(__name__)

START_S: Final = 5.0
"""Longest wait for the broker's first answer at the start. The engine then starts without it."""

DENIALS_S: Final = 1.0
"""Seconds between two records of the sums of denied checks."""

TICK_S: Final = 0.5
"""Seconds between two rounds of housekeeping."""


class OtherPartitionCount(Exception):
    """The number of partitions in force is another one than that of the engine, which did not start.

    Attributes:
        count: The number in force.
    """

    def __init__(self, count: PartitionCount) -> None:
        super().__init__(count)
        self.count = count


class NotStarted:
    """Stands for an attribute that is set at the start. Its error explains how to start the limiter."""

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise RuntimeError("the limiter was not started: use it within `async with Limiter(...):`")


class Engine:
    """Connects the parts of a limiter, from its start to its stop. Use it from its event loop only.

    A limiter that is started again gets a new engine. So it knows nothing of an earlier run, and replies to
    that run do not concern it.

    Args:
        settings: The settings of the limiter.
        metrics: Counts everything; its gauges are reset.
        node_id: The name in heartbeats.
        count: The number of partitions over which clients are hashed.
        partitions_in_file: The number that topics.yaml requires; ``None`` if it requires none.
        on_other_count: Called if, after the start, another engine must replace this one: the number in force
            is another one, or a step of growing is over.
        reply_partition: The partition of ``replies`` to read.
        instrumentation: Observes checks and batches, if given.
        growth: What the limiter does while the number of partitions grows.
        paused: The engine that has paused for a step of growing, which this one replaces.

    Attributes:
        batcher: Answers checks.
        admin: Writes and reads limits.
        lookup: Looks up what a client has used.
        mode: Whether the gateway is degraded.
        nodes: The nodes that are alive.
        rejections: The clients that were rejected most.
        reservations: Opens and settles reservations.
        failure: Why no check will ever be answered by the store again; ``None`` while the engine works.
        failed: Set once there is a failure.
    """

    batcher: Batcher = cast(Batcher, NotStarted())
    admin: LimitsAdmin = cast(LimitsAdmin, NotStarted())
    lookup: UsageLookup = cast(UsageLookup, NotStarted())

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        *,
        node_id: str,
        count: PartitionCount,
        partitions_in_file: int | None,
        on_other_count: Callable[[PartitionCount], None],
        reply_partition: int,
        instrumentation: Instrumentation | None,
        growth: GrowthPause,
        deferred: DeferredSettlements,
        paused: Engine | None = None,
    ) -> None:
        partitions = count.partitions
        self.incarnation = secrets.randbits(64)
        self.mode: DegradedMode = (
            DegradedMode(metrics, time.monotonic, wall_ms) if paused is None else paused.mode
        )
        self._overload = OverloadReport(metrics, time.monotonic)
        self.nodes = NodeRegistry()
        self.rejections = Rejections(time.monotonic)
        self.denials = DenyCache(metrics, partitions, settings.deny_cache, now)
        self.leases = LeaseCache(metrics, partitions, self.incarnation, settings.lease_max_ms, now)
        deadline_s = settings.deadline_ms / 1000
        self.reservations = Reservations(
            self.incarnation, metrics, deadline_s, wall_ms, deferred, self.workers_without_holds
        )
        self.failure: str | None = None
        self.failed = asyncio.Event()
        self._settings = settings
        self._metrics = metrics
        self._node_id = node_id
        self._count = count
        self._partitions = partitions
        self._partitions_in_file = partitions_in_file
        self._on_other_count = on_other_count
        self._reply_partition = reply_partition
        self._instrumentation = instrumentation
        self._growth = growth
        self._deferred = deferred
        self._resumes = paused is not None
        self._pausing: asyncio.Task[None] | None = None
        self._view: BrokerView | None = None
        self._difference: str | None = None
        """The last logged difference between the topics and the number of partitions."""
        self._has_position = False
        self._broker_answered = asyncio.Event()
        self._announced_ms = -1
        self._announced = asyncio.Event()
        """Set once the heartbeat of the start has been read."""
        self._other_forms: dict[str, str] = {}
        """Nodes that compare ids in another form, and that form."""
        self._heartbeat_at = 0.0
        self._started = False
        metrics.deny_entries = metrics.leases = 0
        metrics.degraded_partitions = len(self.mode.partitions)

    # --- start and stop -----------------------------------------------------------------------

    async def start(self) -> None:
        """Start. Without a broker the engine starts as well, and checks fail open.

        Raises:
            OtherPartitionCount: Another number of partitions is in force.
            SettingsError: A node that is alive compares ids in another form.
            TopicError: The broker's topics contradict topics.yaml.
        """
        loop = asyncio.get_running_loop()
        settings, partitions = self._settings, self._partitions
        self.transport = transport = KafkaTransport(
            settings.connection,
            incarnation=self.incarnation,
            reply_partition=self._reply_partition,
            publish_timeout_ms=settings.publish_timeout_ms,
            count=self._count,
            follow_updates=bool(settings.deny_cache or settings.lease_max_ms),
            loop=loop,
            listener=self,
        )
        self.batcher = Batcher(
            loop,
            transport,
            self._metrics,
            self.mode,
            self.denials,
            self.leases,
            transport.arrivals,
            self.rejections,
            partitions=partitions,
            deadline_s=settings.deadline_ms / 1000,
            max_misses=settings.breaker_misses,
            max_in_flight=settings.max_in_flight,
            instrumentation=self._instrumentation,
        )
        self.admin = LimitsAdmin(
            transport,
            count=self._count,
            prefix=transport.update_prefix,
            timeout_s=settings.apply_timeout_ms / 1000,
        )
        self.lookup = UsageLookup(transport, partitions=partitions, prefix=transport.lookup_prefix)
        transport.start()
        start_until = loop.time() + START_S
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(start_until):
                    await self._broker_answered.wait()
            if (count := self._other_count()) is not None:
                raise OtherPartitionCount(count)
            if (error := self._topic_error()) is not None:
                raise TopicError(error)
            if self._has_position and not self._resumes:
                await self._announce(start_until)
        except BaseException:
            self.batcher.close()  # nothing is published any more, and calls may have the batcher
            await asyncio.to_thread(transport.stop)
            raise
        self._started = True
        if self._resumes:
            self.batcher.await_workers("the workers start again")
        self._heed_growth()
        tasks = [self._keep_house()]
        if settings.lease_max_ms:
            tasks.append(self._settle_leases())
        if self._deferred:
            tasks.append(self._settle_deferred())
        self._housekeeping = [loop.create_task(task) for task in tasks]
        for task in self._housekeeping:
            task.add_done_callback(self._on_housekeeping_end)

    async def _announce(self, until: float) -> None:
        """Publish a heartbeat and read the topic up to it. So of two nodes that differ, one does not start.

        Args:
            until: Longest wait (the event loop's time). The engine then starts without it.

        Raises:
            SettingsError: A node that is alive compares ids in another form.
        """
        self._announced_ms = wall_ms()
        self._publish_heartbeat(self._announced_ms)
        self._heartbeat_at = time.monotonic() + HEARTBEAT_S
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._announced.wait()
        if self._other_forms:
            self._publish_heartbeat(wall_ms(), stopping=True)
            raise SettingsError(self._describe_other_forms())

    def _describe_other_forms(self) -> str:
        others = ", ".join(f"{id_} ({form})" for id_, form in sorted(self._other_forms.items()))
        return (
            f"STOPLOG_ID_NORMALIZATION={self._settings.id_normalization}, but other nodes have another form: "
            f"{others}. One client would be several. Stop all gateways and programs with the SDK, then start "
            f"them with the same value. A node that was killed counts for {EXPIRY_S:.0f} s"
        )

    async def stop(self, *, replaced: bool = False) -> None:
        """Stop. Every check that waits gets its answer first.

        Args:
            replaced: Whether another engine of the same limiter has taken over.
        """
        self._started = False
        if self._pausing is None:
            self.batcher.close(STOPPING)
            await self._finish()
        else:
            await asyncio.wait([self._pausing])
        for task in self._housekeeping:
            task.cancel()
        if not replaced:
            self._publish_heartbeat(wall_ms(), stopping=True)
        try:
            stopping = asyncio.get_running_loop().run_in_executor(None, self.transport.stop)
        except RuntimeError:  # at the exit of the interpreter, threads accept no work any more
            self.transport.stop()
        else:
            await stopping
        if not (replaced and self.paused):  # otherwise the other engine uses the mode
            self.mode.on_stop()

    async def _finish(self) -> None:
        """Publish what is left once all checks that wait are answered. The batcher is closed."""
        if waiting := self.batcher.waiting():
            await asyncio.wait(waiting, timeout=self._settings.deadline_ms / 1000)
        self.batcher.stop()
        self._publish_denials()
        self._publish_settlements()

    # --- growing ------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether it has paused for a step of growing. It will be replaced after the step."""
        return self._pausing is not None and self._pausing.done()

    def _heed_growth(self) -> None:
        """Pause for a step of growing, or continue after it."""
        view, growth = self._view, self._growth
        if view is None or view.error is not None or not self._started:
            return
        if view.step.under_way:
            growth.begin(view.step)
            if self._pausing is None:
                self.mode.on_growth(self._partitions, describe_growth(self._count, view.step))
                self.batcher.close(GROWING)
                self.admin.close(self.mode.why or GROWING)
                self._pausing = asyncio.create_task(self._pause())
                self._pausing.add_done_callback(self._on_paused)
            elif self.paused:
                self._publish_heartbeat(wall_ms())
        elif self._pausing is None:
            growth.end(view.step)
        elif self.paused and view.recorded is not None:
            self._on_other_count(view.recorded)

    async def _pause(self) -> None:
        """Publish what is left, and nothing else. Then confirm it.

        A plan that was changed in its home partition goes to the others as well, so that all of them agree.
        """
        sent = self.admin.wait_until_sent(self._settings.publish_timeout_ms / 1000)
        await asyncio.gather(sent, self._finish())
        self.transport.pause(self.mode.why or GROWING)
        await asyncio.to_thread(self.transport.flush)

    def _on_paused(self, task: asyncio.Task[None]) -> None:
        """Confirm the pause, unless the step is over by now."""
        self._on_housekeeping_end(task)
        if self.failure is None:
            self._growth.paused = True
            self._heed_growth()

    # --- state ------------------------------------------------------------------------------

    def status(self) -> Status:
        """Return the status of this process alone."""
        mode = self.mode
        store, store_why = self.store_state()
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
            nodes=self.nodes.alive(time.monotonic()),
            degraded_processes=int(mode.degraded),
            failed_closed=mode.failed_closed,
        )

    def workers_without_stated_plans(self) -> list[str]:
        """Return the ids of the live workers that do not read limits in the name of a plan."""
        return self.nodes.workers_without_stated_plans(time.monotonic())

    def process_state(self) -> ProcessState:
        """Return what this process shares with the other processes on its port."""
        return ProcessState(msgspec.structs.replace(self.status(), nodes=[]), self.rejections.summary())

    def readiness(self) -> Readiness:
        """Return whether the store answers checks of at least one partition.

        After a start the engine is not ready until every partition has replied once.
        """
        reason = self.failure or self._topic_error() or self._reason_not_ready()
        return Readiness(reason is None, reason)

    def _reason_not_ready(self) -> str | None:
        """Return why no partition's checks are answered, or why some never were; ``None`` if they are.

        The circuit breakers decide. A broker that is slow to return its metadata is only a reason to probe
        every partition (:meth:`_keep_house`).
        """
        state, why = self.store_state()
        if state == CONNECTING:
            return why
        broker = why if state in (UNREACHABLE, TOPICS_WRONG) else None
        if not self._has_position:
            return broker or f"no position in topic {REPLIES} yet"
        if never_replied := self.batcher.never_replied:
            listed = ", ".join(map(str, never_replied))
            return broker or f"partition {listed} has not answered yet: is a worker running?"
        return self.mode.why if len(self.mode.partitions) == self._partitions else None

    def store_state(self) -> tuple[str, str | None]:
        """Return the state of the store, and its problem and remedy for the operator."""
        return store_state(self._view, self._count, self.nodes.alive(time.monotonic()))

    def _topic_error(self) -> str | None:
        """Return the fault of the topics; ``None`` if they are right, or may still be created."""
        state, why = self.store_state()
        return why if state == TOPICS_WRONG and self._view is not None and self._view.partitions else None

    def _other_count(self) -> PartitionCount | None:
        """Return the number of partitions in force if it is not that of this engine, else ``None``."""
        recorded = self._view.recorded if self._view is not None else None
        return recorded if recorded != self._count else None

    def _log_difference(self, view: BrokerView) -> None:
        found = {CHECKS: view.partitions}
        difference = explain_difference(self._count, found, self._partitions_in_file or self._count.first)
        if difference is not None and difference != self._difference:
            log.warning("%s", difference)
        self._difference = difference

    # --- events of the transport --------------------------------------------------------------

    def on_position(self) -> None:
        """Note that no reply can be missed from now on."""
        self._has_position = True
        if self._view is not None:
            self._broker_answered.set()

    def on_replies(self, replies: list[Reply]) -> None:
        """Answer checks."""
        self.batcher.on_replies(replies)

    def on_update_replies(self, replies: list[UpdateReply]) -> None:
        """Confirm changes of limits."""
        self.admin.on_replies(replies)

    def on_lookup_replies(self, replies: list[LookupReply]) -> None:
        """Answer lookups."""
        self.lookup.on_replies(replies)

    def on_heartbeats(self, heartbeats: list[StampedHeartbeat]) -> None:
        """Record which nodes are alive, and what workers announce about their partitions."""
        at = time.monotonic()
        for index, stamped in enumerate(heartbeats if not self._announced.is_set() else ()):
            if (stamped.heartbeat.id, stamped.heartbeat.at_ms) == (self._node_id, self._announced_ms):
                # Nodes that announce themselves later find this one. Its own stamp tells which have stopped.
                self.nodes.record(heartbeats[: index + 1], at)
                self._other_forms = self._find_other_forms(at)
                self._announced.set()
                break
        self.nodes.record(heartbeats, at)
        self._heed_announcements(at)
        self.reservations.heard.set()

    def workers_without_holds(self) -> list[str]:
        """Return the ids of the live workers that are of a release that cannot read holds."""
        return self.nodes.workers_without_holds(time.monotonic())

    def _heed_announcements(self, at: float) -> None:
        self.leases.enable(self.nodes.partitions_with_holds(at))
        self.denials.expect_unjudged(self.nodes.unjudged_partitions(at))

    def _find_other_forms(self, at: float) -> dict[str, str]:
        return self.nodes.other_id_forms(self._settings.id_normalization, self._node_id, at)

    def on_updates(self, updates: list[tuple[int, Update]]) -> None:
        """Remove denials, and end leases, that the updates may concern."""
        leases = self._metrics.leases
        for partition, update in updates:
            self.denials.on_update(partition, update.key, update.version)
            self.leases.on_update(partition, update.key, update.version)
        if self._metrics.leases < leases:
            # At once: until then, the permits that are left count against the new limits.
            self._publish_settlements()

    def on_updates_read(self, partitions: list[int], at: float) -> None:
        """Extend the proof by which denials and leases are used."""
        self.denials.on_proof(partitions, at)
        self.leases.on_proof(partitions, at)

    def wants_proof(self) -> bool:
        """Return whether a proof would be used. Any thread."""
        return self.denials.wants_proof or self.leases.wants_proof

    def on_denials_lost(self, checks: int) -> None:
        """Count denied checks that are missing from the log."""
        self._metrics.deny_unlogged += checks

    def on_undelivered(self, failures: list[tuple[int, int]]) -> None:
        """Have the checks of unpublished batches fail open."""
        for number, checks in failures:
            self.batcher.on_undelivered(number, checks)

    def on_broker_down(self, why: str) -> None:
        """Have the checks of every partition fail open."""
        self._view = BrokerView(error=why)
        self.batcher.on_broker_down(why)
        self._broker_answered.set()

    def on_undecodable(self, records: int) -> None:
        """Count records that were skipped."""
        self._metrics.undecodable += records

    def on_failure(self, why: str) -> None:
        """Report that no check will be answered anymore."""
        self.failure = why
        self.failed.set()

    def on_broker_view(self, view: BrokerView) -> None:
        """Keep the broker's metadata, and log an error in the topics or a difference once."""
        before, self._view = self._topic_error(), view
        error = self._topic_error()
        changing = self._pausing is not None or view.step.under_way
        if self._started and not changing and error is not None and error != before:
            log.error("checks fail open until this is fixed: %s", error)
        if not changing and view.recorded == self._count:
            self._log_difference(view)
        elif not changing and self._started and (count := self._other_count()) is not None:
            self._on_other_count(count)
        self._heed_growth()
        if self._has_position or view.error is not None:
            self._broker_answered.set()

    # --- housekeeping -------------------------------------------------------------------------

    async def _keep_house(self) -> None:
        denials_at = 0.0
        while True:
            if self._pausing is None:
                in_doubt = self._view is not None and self._view.error is not None
                self.batcher.probe(broker_in_doubt=in_doubt)
            self.mode.on_tick(healthy=self.batcher.healthy)
            self._overload.on_tick()
            at = time.monotonic()
            self.batcher.on_lanes(self.nodes.lanes(at))
            self._heed_announcements(at)
            if at >= self._heartbeat_at:
                self._heartbeat_at = at + HEARTBEAT_S
                self._publish_heartbeat(wall_ms())
                self._report_other_forms(at)
            if at >= denials_at:
                denials_at = at + DENIALS_S
                self.rejections.tick()
                self._publish_denials()
            await asyncio.sleep(TICK_S)

    def _report_other_forms(self, at: float) -> None:
        """Log once that other nodes compare ids in another form. They can start while no broker answers."""
        before, self._other_forms = self._other_forms, self._find_other_forms(at)
        if self._other_forms.keys() - before.keys():
            log.error("%s", self._describe_other_forms())

    def _on_housekeeping_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("the limiter's housekeeping failed", exc_info=error)
            self.on_failure(f"the limiter's housekeeping failed: {error!r}")

    def _publish_denials(self) -> None:
        for partition, sums in self.denials.take_sums():
            for row in sums:
                self.rejections.add(row.client, row.checks)
            checks = sum(row.checks for row in sums)
            value = encode_denials(Denials(self.incarnation, sums))
            try:
                self.transport.send_denials(partition, value, checks)
            except Unavailable:
                self.on_denials_lost(checks)

    async def _settle_leases(self) -> None:
        while True:
            await asyncio.sleep(self.leases.pause_s)
            self._publish_settlements()

    def _publish_settlements(self) -> None:
        for partition, rows in self.leases.take_settlements():
            value = encode_settlements(SettlementBatch(NO_REPLY, self.incarnation, 0, rows))
            # Leases that are not settled end in the log, which then charges all of them.
            with suppress(Unavailable):
                self.transport.send_settlements(partition, value)

    async def _settle_deferred(self) -> None:
        await self.reservations.heard.wait()  # before, no partition is known to take settlements
        await self._deferred.make(lambda: self.batcher)

    def _publish_heartbeat(self, at_ms: int, *, stopping: bool = False) -> None:
        form = self._settings.id_normalization
        heartbeat = Heartbeat(
            self._node_id,
            "gateway",
            __version__,
            socket.gethostname(),
            at_ms,
            stopping=stopping,
            id_form=msgspec.UNSET if form == NONE else form,
            growth=self._growth.state(),
        )
        with suppress(Unavailable):
            self.transport.send_heartbeat(heartbeat.id.encode(), encode_heartbeat(heartbeat))


def wall_ms() -> int:
    """Return the milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000
