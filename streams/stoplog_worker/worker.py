"""A worker process: owner, restorer and Faust app put together, run until told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from typing import Final

import uvloop
from confluent_kafka import KafkaException
from prometheus_client import start_http_server
from pydantic import ValidationError

from stoplog import __version__
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
from stoplog.kafka.topic_admin import verify_topics
from stoplog.lanes import DEFAULT_LANE, with_lanes
from stoplog.log_throttle import LogThrottle, ThrottleFilter
from stoplog.topics import NODES, load_topics
from stoplog.wire.heartbeats import HEARTBEAT_S, RESTORING, RUNNING, STANDBY, Heartbeat, encode_heartbeat
from stoplog_worker.assignment.coordinator import AssignmentCoordinator
from stoplog_worker.assignment.faust_app import FaustApp
from stoplog_worker.assignment.faust_tables import FaustTables
from stoplog_worker.consumer.consumer_thread import ConsumerThread
from stoplog_worker.instance_lock import lock_instance
from stoplog_worker.kafka.group_coordinator import wait_for_coordinator
from stoplog_worker.lease import Lease
from stoplog_worker.metrics import Metrics
from stoplog_worker.restore.lane_bootstrap import LaneCopier, changelogs
from stoplog_worker.restore.restorer import Restored, Restorer
from stoplog_worker.settings import Settings
from stoplog_worker.state.rocksdb import RocksDbFactory
from stoplog_worker.state.store import PartitionStore

_log = logging.getLogger("stoplog.worker")

EXIT_FATAL: Final = 1
EXIT_CONFIG: Final = 78
"""Starting again would not help: an operator has to do what the message says (sysexits' EX_CONFIG)."""

GC_THRESHOLDS: Final = (50_000, 20, 20)
"""Python's collector: clients' states are many and in no cycle. With its defaults it would look through them
for 5 µs a check when most clients come from disk."""

_SAME_TEXT_S: Final = 600.0
"""Seconds between two identical log lines of a Kafka client."""

_STOP_S: Final = 20.0
"""Seconds a stop may take, flush included; what is not flushed by then is replayed."""


class Worker:
    """One worker.

    Args:
        settings: Read once.

    Raises:
        TopicError: the topics are not those of topics.yaml.
        SettingsError: another worker uses the same tables.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._claim = lock_instance(settings.tables)
        specs = load_topics(settings.topics)
        admin = kafka.worker_admin(settings.bootstrap)
        verify_topics(admin, with_lanes(specs, [settings.lane]).values())
        wait_for_coordinator(admin, settings.app_id)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[BaseException | None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        lease = Lease(settings.session_timeout_ms, settings.send_timeout_ms)
        self.app = FaustApp(settings, lease, self._revoked, self._assigned, self._let_go, self._fenced)
        tables = FaustTables(
            self.app, specs["checks"].partitions, RocksDbFactory(settings.store_memory_mb << 20)
        )
        self._restorer = Restorer(
            settings.bootstrap,
            tables.changelogs,
            tables.open,
            self.metrics,
            on_restored=self._restored,
            on_ends=lambda ends: self._owner.set_changelog_ends(ends),
            on_fatal=self._fatal,
            copier=LaneCopier(
                settings.bootstrap,
                settings.send_timeout_ms,
                changelogs(""),
                tables.changelogs,
                self.metrics,
                lease,
            )
            if settings.lane
            else None,
        )
        self._owner = ConsumerThread(
            settings,
            specs["checks"].partitions,
            tables.changelogs,
            lease,
            self.metrics,
            on_dropped=self._dropped,
            on_fatal=self._fatal,
        )
        self.coordinator = AssignmentCoordinator(
            self._owner, self._restorer, lease, lambda: self.app.member, self._send_beat
        )
        self._beats = kafka.reply_producer(settings.bootstrap, settings.send_timeout_ms)

    async def run(self) -> int:
        """Work until SIGTERM, SIGINT or a fatal error; returns the exit code."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(signum, self._end, None)
        self._serve_metrics()
        self._owner.start()
        self._restorer.start()
        starting = asyncio.create_task(self._run_app())
        beating = asyncio.create_task(self._beat())
        cause = await self._ended
        beating.cancel()
        self._stopping = True
        self._send_beat()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.app.stop(), _STOP_S)
        await self.coordinator.stop()
        waiting = (starting, beating, *self._tasks)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        self._beats.flush(1.0)
        if cause is None:
            _log.info("stopped")
            return 0
        if isinstance(cause, StoplogError):
            _log.critical("%s", cause)
        else:
            _log.critical("the worker cannot go on: %r", cause, exc_info=cause)
        return _exit_code(cause)

    def _serve_metrics(self) -> None:
        host, port = self.settings.metrics_host, self.settings.metrics_port
        try:
            start_http_server(port, host, self.metrics.registry)
        except OSError as exc:
            raise SettingsError(
                f"/metrics cannot listen on {host}:{port} ({exc.strerror}): set STOPLOG_METRICS_PORT to a "
                f"free port (0: any), or STOPLOG_METRICS_HOST to an address of this machine"
            ) from exc

    async def _run_app(self) -> None:
        try:
            await self.app.start()
            await self.app.wait_until_stopped()
        except Exception as exc:  # noqa: BLE001 - whatever stops Faust stops the worker
            self._end(exc)
        else:
            self._end(self.app.crash_reason)

    def _end(self, cause: BaseException | None) -> None:
        if not self._ended.done():
            self._ended.set_result(cause)

    # --- called on the loop by Faust ---

    async def _revoked(self) -> None:
        await self.coordinator.on_revoked()

    async def _assigned(self, generation: int, actives: set[int], standbys: set[int]) -> None:
        await self.coordinator.on_assigned(generation, actives, standbys)

    async def _let_go(self) -> None:
        with suppress(Unavailable):  # the owner has ended
            await self.coordinator.prepare_to_leave()

    # --- called by the threads ---

    def _restored(self, restored: Restored) -> None:
        self._loop.call_soon_threadsafe(lambda: self._keep(self.coordinator.on_restored(restored)))

    def _dropped(self, stores: list[PartitionStore]) -> None:
        self._loop.call_soon_threadsafe(lambda: self._keep(self.coordinator.on_dropped(stores)))

    def _fenced(self) -> None:
        self._fatal(
            InstanceTaken(
                f"another worker has joined the group as {self.settings.instance_id}, so this one ends. If "
                f"it was replaced, all is well; if not, give each worker an STOPLOG_INSTANCE_ID of its own"
            )
        )

    def _fatal(self, cause: BaseException) -> None:
        self._loop.call_soon_threadsafe(self._end, cause)

    def _keep(self, coroutine: object) -> None:
        task: asyncio.Task[None] = self._loop.create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._end(exc)

    # --- beats ---

    async def _beat(self) -> None:
        while True:
            self._send_beat()
            await asyncio.sleep(HEARTBEAT_S)

    def _send_beat(self) -> None:
        partitions = self.coordinator.partition_states()
        beat = Heartbeat(
            id=self.settings.node_id,
            role="worker",
            version=__version__,
            host=socket.gethostname(),
            at_ms=int(time.time() * 1_000),
            partitions={} if self._stopping else partitions,
            stopping=self._stopping,
            lane=self.settings.lane or DEFAULT_LANE,
        )
        for state in (RUNNING, RESTORING, STANDBY):
            count = sum(1 for beat in partitions.values() if beat.state == state)
            self.metrics.partitions.labels(state).set(count)
        # The broker has been away for long, or the topic is being made again: the next beat will do.
        with suppress(BufferError, KafkaException):
            self._beats.produce(NODES, encode_heartbeat(beat), self.settings.node_id.encode())
        self._beats.poll(0)


def _exit_code(cause: BaseException) -> int:
    # An instance id that was taken would be taken back, and so on.
    for_operators = (InstanceTaken, SettingsError, StateError, TopicError)
    return EXIT_CONFIG if isinstance(cause, for_operators) else EXIT_FATAL


def main() -> int:
    """Run a worker as a process; returns its exit code."""
    try:
        settings = Settings()
    except (ValidationError, InvalidInput) as exc:
        print(f"the worker's STOPLOG_* settings cannot be used: {exc}", file=sys.stderr)
        return EXIT_CONFIG
    logging.basicConfig(
        level=settings.log_level,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # "stoplog_worker": Faust logs its services' comings and goings under the modules that subclass them.
    for noisy in ("faust", "mode", "asyncio", "stoplog_worker"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # Both clients say the same many times a second while a broker is away. What that means is said when the
    # lease runs out; but why the group refuses this worker, say, nobody else tells.
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    for handler in logging.getLogger().handlers:
        for noisy in ("aiokafka", "stoplog.kafka"):
            handler.addFilter(ThrottleFilter(noisy, LogThrottle(_SAME_TEXT_S)))
    # The owner thread shares the interpreter with two that mostly wait: do not let it wait 5 ms for them.
    sys.setswitchinterval(0.0005)
    gc.set_threshold(*GC_THRESHOLDS)

    async def work() -> int:
        while True:
            try:
                return await Worker(settings).run()
            except Unavailable as exc:
                # The broker may be starting as well; there is nothing to lose by waiting for it.
                _log.warning("%s; trying again", exc)
                await asyncio.sleep(1)
            except StoplogError as exc:
                _log.critical("%s", exc)
                return _exit_code(exc)

    with ExitStack() as stack:
        if settings.tracing:
            try:
                from stoplog.tracing import start
            except SettingsError as exc:
                _log.critical("%s", exc)
                return EXIT_CONFIG
            stack.callback(start("stoplog-worker", settings.node_id))
        code = uvloop.run(work())
    logging.shutdown()
    # Faust's consumer thread may outlive its loop; nothing is left to be done.
    os._exit(code)
