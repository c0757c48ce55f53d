"""A worker process: the consumer thread, the restorer and the Faust app, from start to stop."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from typing import Any, Final

import uvloop
from pydantic import ValidationError

from stoplog.errors import (
    InstanceTaken,
    InvalidInput,
    SettingsError,
    StateError,
    StoplogError,
    TopicError,
    Unavailable,
)
from stoplog.kafka import clients as kafka
from stoplog.kafka.count_follower import follow_partition_count
from stoplog.kafka.partition_count import PartitionCountReader
from stoplog.log_throttle import LogThrottle, ThrottleFilter
from stoplog.private_files import make_private, write_private_files
from stoplog.topics import AUDIT
from stoplog.wire.heartbeats import RESTORING, GrowthState
from stoplog.wire.partition_count import NO_STEP, CountRecord, GrowthStep
from stoplog_worker.assignment.faust_app import FaustApp
from stoplog_worker.assignment.faust_tables import FaustTables
from stoplog_worker.assignment.takeover import AssignmentCoordinator
from stoplog_worker.consumer.consumer_thread import ConsumerThread
from stoplog_worker.growth_wait import EXIT_RESTART, restart, wait_while_draining
from stoplog_worker.heartbeats import HeartbeatSender
from stoplog_worker.instance_lock import lock_instance
from stoplog_worker.kafka.connection_watch import ConnectionWatch
from stoplog_worker.kafka.group_coordinator import wait_for_coordinator
from stoplog_worker.lease import Lease
from stoplog_worker.metrics import Metrics
from stoplog_worker.metrics_server import serve_metrics
from stoplog_worker.outage_filter import outage_filter
from stoplog_worker.partition_count import verified_specs
from stoplog_worker.restore.lane_bootstrap import LaneCopier, changelogs
from stoplog_worker.restore.restorer import Restored, Restorer
from stoplog_worker.settings import Settings
from stoplog_worker.state.rocksdb import RocksDbFactory
from stoplog_worker.state.store import TABLES, PartitionStore

_log = logging.getLogger("stoplog.worker")

EXIT_FATAL: Final = 1
EXIT_CONFIG: Final = 78
"""A restart would not help: an operator has to follow the message (EX_CONFIG of sysexits.h)."""

GC_THRESHOLDS: Final = (50_000, 20, 20)
"""Thresholds of Python's garbage collector. The states of clients are many and in no cycle. With the default
thresholds it would examine them so often that a check costs 5 µs more when most clients come from disk."""

_SWITCH_INTERVAL_S: Final = 0.0005
"""Seconds after which Python lets another thread run. The consumer thread shares the interpreter with two
threads that mostly wait. With the default it would wait 5 ms for each of them."""

_SAME_TEXT_S: Final = 600.0
"""Seconds between two identical log lines of a Kafka client."""

_STOP_S: Final = 20.0
"""Seconds that a stop may take, with the last checkpoints. The rest is replayed by the next owner."""

_DRAIN_POLL_S: Final = 0.1
"""Seconds between two looks at the ends of the log while the number of partitions grows."""

_LOOKS_A_HEARTBEAT: Final = 3
"""Looks for each heartbeat: the command waits for one that was sent after all gateways have paused."""

_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 5.0
"""Seconds between two attempts to start while Kafka cannot be used. They double up to the last value."""


class _Restart(Exception):
    """The worker becomes a new process, because the number of partitions grows or has grown."""


class Worker:
    """One worker.

    Args:
        settings: The worker's settings.
        reader: Reads the number of partitions. No step of growing required workers to stop when it last did.
        metrics_socket: See :func:`~stoplog_worker.metrics_server.serve_metrics`.

    Raises:
        TopicError: the topics contradict topics.yaml, or the number of partitions in force.
        Unavailable: no broker answers, or none coordinates the group.
    """

    def __init__(
        self, settings: Settings, reader: PartitionCountReader, metrics_socket: int | None = None
    ) -> None:
        self.settings = settings
        self._reader = reader
        self._step: GrowthStep = NO_STEP
        self._drained = self._paused = self._stop_requested = False
        self._draining: asyncio.Task[None] | None = None
        self._ending = threading.Event()
        self._metrics_socket = metrics_socket
        self.metrics = Metrics()
        admin = kafka.silent_admin(settings.connection)
        specs, self._count = verified_specs(settings, admin, starting=True)
        partitions = self._count.partitions
        wait_for_coordinator(admin, settings.app_id)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[BaseException | None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        lease = Lease(settings.session_timeout_ms, settings.send_timeout_ms)
        self.app = FaustApp(
            settings,
            partitions,
            lease,
            self._on_revoked,
            self._on_assigned,
            self._on_leaving,
            self._on_fenced,
            self._on_fatal,
        )
        databases = RocksDbFactory(settings.store_memory_mb << 20, len(TABLES) * partitions)
        tables = FaustTables(self.app, partitions, databases)
        self._restorer = Restorer(
            settings.connection,
            tables.changelogs,
            tables.open,
            self.metrics,
            on_restored=self._on_restored,
            on_ends=lambda ends: self._consumer.set_changelog_ends(ends),
            on_fatal=self._on_fatal,
            copier=LaneCopier(
                settings.connection,
                settings.send_timeout_ms,
                changelogs(""),
                tables.changelogs,
                self.metrics,
                lease,
            )
            if settings.lane
            else None,
        )
        self._consumer = ConsumerThread(
            settings,
            self._count,
            tables.changelogs,
            lease,
            self.metrics,
            on_dropped=self._on_dropped,
            on_fatal=self._on_fatal,
            audited=AUDIT in specs,
        )
        self.coordinator = AssignmentCoordinator(
            self._consumer,
            self._restorer,
            lease,
            lambda: self.app.member,
            lambda: self._heartbeats.send(),
        )
        self._heartbeats = HeartbeatSender(
            settings,
            self.metrics,
            self.coordinator.partition_states,
            self._consumer.partitions_with_holds,
            self._consumer.unjudged_partitions,
            lambda: GrowthState(self._step.epoch, self._paused, self._drained),
        )
        self._watch = ConnectionWatch(settings.connection)

    async def run(self) -> int:
        """Work until SIGTERM, SIGINT or a fatal error; return the exit status."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(signum, self._request_stop)
        serve_metrics(self.settings, self.metrics.registry, self._metrics_socket)
        self._consumer.start()
        self._restorer.start()
        self._watch.start()
        start = self._reader.next_offset
        threading.Thread(target=self._follow_count, args=(start,), name="count", daemon=True).start()
        app = asyncio.create_task(self._run_app())
        heartbeats = asyncio.create_task(self._heartbeats.run())
        cause = await self._ended
        restarts = isinstance(cause, _Restart)
        self._ending.set()
        if not restarts:
            heartbeats.cancel()
            self._heartbeats.announce_stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.app.stop(), _STOP_S)
        await self.coordinator.stop(hand_over=not restarts)
        tasks = (app, heartbeats, *self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if restarts and self._stop_requested:
            self._heartbeats.announce_stop()
        elif restarts and self._step.draining:
            self._paused = True
            self._heartbeats.send()  # nothing is written any more, and a new process takes a second or two
        self._heartbeats.close()
        if cause is None or (restarts and self._stop_requested):
            _log.info("stopped")
            return 0
        if restarts:
            _log.info("starting again: %s", cause)
            return EXIT_RESTART
        if isinstance(cause, StoplogError):
            _log.critical("%s", cause)
        else:
            _log.critical("the worker failed: %r", cause, exc_info=cause)
        return _exit_status(cause)

    async def _run_app(self) -> None:
        try:
            await self.app.start()
            await self.app.wait_until_stopped()
        except Exception as exc:  # noqa: BLE001 - every failure of Faust stops the worker
            self._end(exc)
        else:
            self._end(self.app.crash_reason)

    def _request_stop(self) -> None:
        """Stop, even if the worker is about to become a new process."""
        self._stop_requested = True
        self._end(None)

    def _end(self, cause: BaseException | None) -> None:
        if not self._ended.done():
            self._ended.set_result(cause)

    # --- called by Faust, on the event loop ---

    async def _on_revoked(self) -> None:
        await self.coordinator.on_revoked()

    async def _on_assigned(self, generation: int, actives: set[int], standbys: set[int]) -> None:
        # This worker may have been away while the number grew.
        await self._read_count()
        if self._ended.done():
            return
        await self.coordinator.on_assigned(generation, actives, standbys)

    async def _on_leaving(self) -> None:
        with suppress(Unavailable):  # the consumer thread has ended
            await self.coordinator.prepare_to_leave()

    # --- growing ---

    async def _read_count(self) -> None:
        """Read the record of the number of partitions. If it has changed, this worker ends."""
        while not self._ended.done():
            try:
                record = await asyncio.to_thread(self._reader.read_record)
            except Unavailable:
                await asyncio.sleep(_FIRST_RETRY_S)
            else:
                if record is not None:
                    self._on_record(record)
                return

    def _follow_count(self, start: int) -> None:
        def on_record(record: CountRecord) -> None:
            self._loop.call_soon_threadsafe(self._on_record, record)

        follow_partition_count(self.settings.connection, start, self._ending, on_record, self._on_fatal)

    def _on_record(self, record: CountRecord) -> None:
        self._step = record.step
        if record.count != self._count:
            self._end(_Restart(f"clients are now hashed over {record.count.partitions} partitions"))
        elif record.step.under_way and self._draining is None:
            _log.info("the number of partitions grows to %s: deciding what is in the log", record.step.to)
            self._draining = self._loop.create_task(self._drain())
            self._draining.add_done_callback(self._on_task_done)

    async def _drain(self) -> None:
        """Decide everything in the log; end once the step requires it."""
        for look in count():
            if not self._step.under_way:
                break
            draining = self._step.draining
            drained = await asyncio.wrap_future(self._consumer.drained())
            if not draining:
                # A partition that is being restored is not decided yet. Later, it comes from another worker
                # that has decided everything.
                states = self.coordinator.partition_states().values()
                drained &= not any(partition.state == RESTORING for partition in states)
            if drained and draining:
                self._end(_Restart(f"the number of partitions grows to {self._step.to}"))
                return
            if drained != self._drained or look % _LOOKS_A_HEARTBEAT == 0:
                self._drained = drained
                self._heartbeats.send()
            await asyncio.sleep(_DRAIN_POLL_S)
        self._drained, self._draining = False, None

    # --- called by other threads ---

    def _on_restored(self, restored: Restored) -> None:
        self._loop.call_soon_threadsafe(lambda: self._spawn(self.coordinator.on_restored(restored)))

    def _on_dropped(self, stores: list[PartitionStore]) -> None:
        self._loop.call_soon_threadsafe(lambda: self._spawn(self.coordinator.on_dropped(stores)))

    def _on_fenced(self) -> None:
        self._on_fatal(
            InstanceTaken(
                f"another worker has joined the group as {self.settings.instance_id}, so this one stops. "
                f"If it is a replacement, nothing is wrong. Otherwise give each worker its own "
                f"STOPLOG_INSTANCE_ID"
            )
        )

    def _on_fatal(self, cause: BaseException) -> None:
        self._loop.call_soon_threadsafe(self._end, cause)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._end(exc)


def _exit_status(cause: BaseException) -> int:
    # A worker that took its instance id back would be fenced again, and so on.
    needs_operator = (InstanceTaken, SettingsError, StateError, TopicError)
    return EXIT_CONFIG if isinstance(cause, needs_operator) else EXIT_FATAL


def _configure_logging(level: str) -> None:
    logging.basicConfig(
        level=level,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # "stoplog_worker": Faust logs the start and stop of its services under the modules of their subclasses.
    for noisy in ("faust", "mode", "asyncio", "stoplog_worker"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.addFilter(outage_filter)
        handler.addFilter(ThrottleFilter("aiokafka", LogThrottle(_SAME_TEXT_S)))


async def _work(settings: Settings, metrics_socket: int | None) -> int:
    try:
        # Held until the process ends, whatever is left of an attempt that failed.
        lock = lock_instance(settings.tables)
    except SettingsError as exc:
        _log.critical("%s", exc)
        return EXIT_CONFIG
    with lock:
        return await _work_locked(settings, metrics_socket)


async def _work_locked(settings: Settings, metrics_socket: int | None) -> int:
    throttle, retry_s = LogThrottle(_SAME_TEXT_S), _FIRST_RETRY_S
    reader = PartitionCountReader(settings.connection)
    while True:
        try:
            if not await wait_while_draining(settings, reader):
                return 0
            return await Worker(settings, reader, metrics_socket).run()
        except Unavailable as exc:
            # The broker may be starting as well. Credentials may be corrected at the broker.
            if (suppressed := throttle.admit(str(exc))) is not None:
                _log.warning("%s; trying again%s", exc, suppressed)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, _LAST_RETRY_S)
        except StoplogError as exc:
            _log.critical("%s", exc)
            return _exit_status(exc)


def main(arguments: Sequence[str]) -> int:
    """Run a worker as a process; return its exit status."""
    parser = argparse.ArgumentParser("stoplog worker")
    parser.add_argument("--metrics-socket", type=int, help="file descriptor of a listening socket")
    options = parser.parse_args(arguments)
    write_private_files()
    try:
        settings = Settings()
    except (ValidationError, InvalidInput, SettingsError) as exc:
        print(f"invalid STOPLOG_* settings of the worker: {exc}", file=sys.stderr)
        return EXIT_CONFIG
    _configure_logging(settings.log_level)
    tables, *_ = settings.tables.relative_to(settings.home).parts
    if (problem := make_private(settings.home, tables)) is not None:
        _log.warning("%s", problem)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.set_threshold(*GC_THRESHOLDS)
    with ExitStack() as stack:
        if settings.tracing:
            try:
                from stoplog.tracing import start
            except SettingsError as exc:
                _log.critical("%s", exc)
                return EXIT_CONFIG
            stack.callback(start("stoplog-worker", settings.node_id))
        status = uvloop.run(_work(settings, options.metrics_socket))
    if status == EXIT_RESTART:
        restart()
    logging.shutdown()
    # Faust's consumer thread may outlive its event loop, and nothing is left to do.
    os._exit(status)
