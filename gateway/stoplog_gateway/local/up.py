"""`stoplog up`: all parts as processes on this machine, from the broker to the first answered check.

The parts start in the order broker, topics, workers, gateways. They stop in the reverse order, so that checks
in flight are still answered. A start that fails ends with its cause, and leaves nothing running. After the
start, each part is supervised on its own (:mod:`stoplog_gateway.local.supervised_part`): nothing but a signal
ends a running system.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Final, Protocol

import httpx

from stoplog.errors import StoplogError
from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import PartitionCountReader, write_partition_count
from stoplog.kafka.topic_admin import create_topics
from stoplog.lanes import lane_names, with_lanes, worker_name
from stoplog.log_throttle import LogThrottle
from stoplog.private_files import make_private, write_private_files
from stoplog.topics import CHECKS, DEFAULT_FILE, TopicSpec, load_topics, with_partitions
from stoplog.wire.partition_count import PartitionCount
from stoplog_gateway.access.local_token import TOKEN_FILE, TOKENS_FILE, ensure_local_token
from stoplog_gateway.kafka_reachable import ensure_reachable
from stoplog_gateway.local.child_process import USAGE_EXITS, Child
from stoplog_gateway.local.data_dir import DataDir
from stoplog_gateway.local.end_with_parent import ending_with_parent
from stoplog_gateway.local.first_answers import probe_client, reason_not_ready
from stoplog_gateway.local.kafka_broker import Broker, BrokerFailed
from stoplog_gateway.local.kafka_jars import KAFKA_VERSION, jars_folder
from stoplog_gateway.local.supervised_part import SupervisedPart
from stoplog_gateway.ports import MAX_PORT, CannotListen, claim_port, ensure_free, free_port, listen, url_of
from stoplog_gateway.settings import GatewaySettings

_READY_S: Final = 90.0
"""A start takes 10 s. Restoring large tables after a crash takes longer."""

_WORKER_STOP_S: Final = 20.0
_POLL_S: Final = 0.1

_LIST_S: Final = 5.0
"""Seconds that the broker may take to list its topics."""

_METRICS_PORT: Final = 9101

_REPEAT_S: Final = 600.0
"""Seconds between two identical lines about the data folder."""


class UpFailed(StoplogError):
    """A part cannot run; the text states which, and why."""


def first_count(present: int, *, in_file: int, workers: int) -> PartitionCount | None:
    """Return the number of partitions of an embedded broker that has no record of it.

    A new broker gets one partition for each worker. On one machine, more of them make every check more
    expensive (docs/benchmarks.md), and the number can grow.

    Args:
        present: Partitions of ``checks``; 0 if there is no such topic.
        in_file: The number in the shipped topics.yaml, with which release 0.2.0 created the topics.
        workers: Workers in each lane.

    Returns:
        The number; ``None`` if that of topics.yaml is right.

    >>> first_count(0, in_file=4, workers=2).partitions
    2
    >>> first_count(4, in_file=4, workers=1)  # of release 0.2.0
    >>> first_count(1, in_file=4, workers=2).partitions  # a start that ended before it wrote the record
    1
    """
    if present >= in_file:
        return None
    return PartitionCount(present or workers)


class Progress(Protocol):
    """Shows the progress of a start."""

    def say(self, line: str) -> None:
        """Show *line*, which stays."""

    def show(self, step: str, share: float | None = None) -> None:
        """Show the step that the start is waiting for, and the part of it that is done, from 0 to 1."""


class Up:
    """Everything that `stoplog up` runs.

    Args:
        settings: Settings of the gateways.
        broker: The embedded broker; ``None`` if ``settings.kafka`` names another Kafka.
        workers: Number of workers in each lane.
        gateways: Number of gateways, on ``settings.port`` and the ports after it.
        lanes: Number of lanes; see docs/lanes.md.
        progress: Shows the progress.
        ready: Called once with the URLs of all gateways, when a check of every partition has been answered.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        broker: Broker | None,
        workers: int,
        gateways: int,
        lanes: int,
        progress: Progress,
        ready: Callable[[list[str]], None],
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._progress = progress
        self._ready = ready
        self._ports = [settings.port + i if settings.port else free_port() for i in range(gateways)]
        # A server on all addresses listens on this one too.
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
        self._urls = [url_of(host, port, settings.url_scheme) for port in self._ports]
        self._folder = settings.home.resolve()
        self._tokens_file = settings.tokens_file or self._folder / TOKENS_FILE
        self._lanes = lane_names(lanes)
        self._worker_count = workers
        self._worker_names = [
            (lane, worker_name(lane, number)) for lane in self._lanes for number in range(1, workers + 1)
        ]
        self._workers: list[Child] = []
        self._gateways = [self._gateway(number, port) for number, port in enumerate(self._ports, 1)]
        self._throttle = LogThrottle(_REPEAT_S)
        self._starting = True
        self._ending = False

    def run(self) -> None:
        """Start everything, keep it running until SIGINT, SIGTERM or SIGHUP, and stop it.

        Raises:
            DataDirInUse: another `stoplog up` runs on this data folder.
            BrokerFailed: the embedded broker cannot run.
            SettingsError: the gateways need a client certificate, and there is no usable one.
            KafkaUnreachable: the Kafka named by ``STOPLOG_KAFKA`` does not answer.
            TopicError: its topics differ from topics.yaml.
            CannotListen: a port or an address cannot be used.
            TokensFileError: the tokens file cannot be used.
            UpFailed: a process cannot run.
        """
        write_private_files()
        home = DataDir(self._folder, self._urls[0])
        self._handle_signals()
        with ExitStack() as stack:
            stack.callback(home.release)
            stack.callback(self._stop)
            try:
                if stopped := home.stop_leftovers():
                    self._say(f"stopped {stopped} processes that a killed `stoplog up` had left running")
                if (problem := make_private(self._folder, *self._data())) is not None:
                    self._say(problem)
                self._start(home, stack)
                while True:
                    self._update(home)
                    time.sleep(_POLL_S)
            except KeyboardInterrupt:
                self._say("stopping ... (press Ctrl-C again to stop at once)")

    def _data(self) -> set[str]:
        """Return the names of everything that this system keeps in its data folder."""
        tables = {f"lane-{lane}" if lane else name for lane, name in self._worker_names}
        return {"up.json", "logs", "kafka", TOKENS_FILE, TOKEN_FILE} | tables

    # --- the start ---

    def _start(self, home: DataDir, stack: ExitStack) -> None:
        specs = load_topics(self._settings.topics)
        if self._settings.tokens_file is None:
            ensure_local_token(self._folder)
        probe = stack.enter_context(probe_client(self._settings))
        self._claim_ports(stack)
        self._workers = self._bind_workers(stack)
        if self._broker is not None:
            fetching = "" if jars_folder(self._folder).exists() else " (fetching it once, 45 MB)"
            self._say(f"starting Apache Kafka {KAFKA_VERSION}{fetching} ...")
            self._broker.launch()
            self._record(home)
            self._progress.show("waiting for the broker")
            self._broker.wait_ready()
        broker = self._broker
        connection = KafkaConnection(broker.bootstrap) if broker else self._settings.connection
        ensure_reachable(connection)
        self._create_topics(connection, specs)
        self._say("starting worker and gateway ...")
        for child in (*self._workers, *self._gateways):
            child.start()
        self._record(home)
        self._parts = self._supervised_parts()
        self._await_answers(home, probe)
        self._starting = False
        with suppress(OSError):  # nobody reads standard output any more
            self._ready(self._urls)

    def _create_topics(self, connection: KafkaConnection, specs: dict[str, TopicSpec]) -> None:
        """Create the missing topics of *specs*, those of topics.yaml."""
        recorded, admin = PartitionCountReader(connection).read(), silent_admin(connection)
        first = None
        if recorded is None and self._broker is not None and self._settings.topics == DEFAULT_FILE:
            topics = admin.list_topics(timeout=_LIST_S).topics
            present = len(topics[CHECKS].partitions) if CHECKS in topics else 0
            first = first_count(present, in_file=specs[CHECKS].partitions, workers=self._worker_count)
        count = recorded or first
        if count is not None:
            specs = with_partitions(specs, count.partitions)
        create_topics(admin, with_lanes(specs, self._lanes).values(), recorded=count is not None)
        if first is not None:
            # At once: topics.yaml has another number, which a worker would record.
            write_partition_count(connection, first)

    def _claim_ports(self, stack: ExitStack) -> None:
        """Claim the gateways' ports until this system ends. A gateway binds its port when it has started."""
        for port in self._ports:
            if sys.platform == "linux":
                for sock in claim_port(port, self._settings.host, "up"):
                    stack.enter_context(sock)
            # Other programs claim nothing. If one takes the port after this, the gateway ends and says so.
            ensure_free(port, self._settings.host)

    def _bind_workers(self, stack: ExitStack) -> list[Child]:
        """Return the workers, each with a socket for its metrics.

        This process holds the sockets, so that a scraper finds the same ports after each start of a worker.
        """
        first = os.environ.get("STOPLOG_METRICS_PORT") or str(_METRICS_PORT)
        if not first.isdecimal() or int(first) > MAX_PORT:
            raise UpFailed(f"STOPLOG_METRICS_PORT={first} is not a port: use 0 (any free one) to {MAX_PORT}")
        workers = []
        for number, (lane, name) in enumerate(self._worker_names):
            sock = stack.enter_context(self._listen(name, int(first) and int(first) + number))
            workers.append(self._worker(lane, name, sock))
        return workers

    def _listen(self, name: str, port: int) -> socket.socket:
        host = os.environ.get("STOPLOG_METRICS_HOST") or "127.0.0.1"
        try:
            return listen(port, host, "STOPLOG_METRICS_")
        except CannotListen as exc:
            sock = listen(0, host, "STOPLOG_METRICS_")
            self._say(f"{name} has its metrics on port {sock.getsockname()[1]}, because {exc}")
            return sock

    def _worker(self, lane: str, name: str, metrics: socket.socket) -> Child:
        arguments = ["-m", "stoplog_worker", "worker", "--metrics-socket", str(metrics.fileno())]
        env = {"STOPLOG_INSTANCE_ID": name, "STOPLOG_LANE": lane}
        return self._child(name, arguments, env, pass_fds=[metrics.fileno()])

    def _gateway(self, number: int, port: int) -> Child:
        # No load balancer stands in front of it, and Ctrl-C should end it soon.
        env = {
            "STOPLOG_PORT": str(port),
            "STOPLOG_DRAIN_S": os.environ.get("STOPLOG_DRAIN_S", "0"),
            "STOPLOG_TOKENS_FILE": str(self._tokens_file),
            "STOPLOG_RELAY_KEYS": "",  # only workers hold these
            "STOPLOG_RELAY_KEYS_FILE": "",
        }
        if number > 1:
            env["STOPLOG_ENVOY"] = ""  # only one gateway can listen on this address
            if self._settings.node_id:
                env["STOPLOG_NODE_ID"] = f"{self._settings.node_id}-{number}"
        return self._child(f"gateway-{number}", ["-m", "stoplog_gateway", "gateway"], env)

    def _child(
        self, name: str, arguments: list[str], env: dict[str, str], pass_fds: Sequence[int] = ()
    ) -> Child:
        return Child(
            name,
            ending_with_parent([sys.executable, *arguments]),
            env=env | {"STOPLOG_KAFKA": self._settings.bootstrap, "STOPLOG_HOME": str(self._folder)},
            log=self._folder / "logs" / f"{name}.log",
            pass_fds=pass_fds,
        )

    def _await_answers(self, home: DataDir, probe: httpx.Client) -> None:
        """Wait until every gateway has had an answer from the owner of every partition."""
        deadline = time.monotonic() + _READY_S
        waiting = list(self._urls)
        while waiting:
            self._end_if_hopeless()
            self._update(home)
            if time.monotonic() > deadline:
                raise UpFailed(f"{waiting[0]} did not answer a check in {_READY_S:.0f} s; {self._logs()}")
            missing = reason_not_ready(probe, waiting[0])
            if missing is None:
                waiting.pop(0)
            else:
                self._progress.show(f"waiting: {missing}")
                time.sleep(_POLL_S)

    def _end_if_hopeless(self) -> None:
        """End the start if another try would end the same way.

        Raises:
            BrokerFailed: the broker ended.
            UpFailed: a process ended because of its settings or topics.
        """
        if self._broker is not None and not self._broker.running:
            raise BrokerFailed(
                f"the broker stopped during the start; the end of {self._broker.log}:\n{self._broker.tail()}"
            )
        for child in (*self._workers, *self._gateways):
            if child.status in USAGE_EXITS:
                raise UpFailed(f"{child.name} cannot run; the end of {child.log}:\n{child.tail()}")

    def _logs(self) -> str:
        children = (*self._workers, *self._gateways)
        return "".join(f"\nthe end of {child.log}:\n{child.tail()}" for child in children)

    # --- the running system ---

    def _supervised_parts(self) -> list[SupervisedPart]:
        children = (*self._gateways, *self._workers)
        parts = [SupervisedPart(child, child.start, self._say_of_part) for child in children]
        if self._broker is not None:
            broker = self._broker
            parts.append(SupervisedPart(broker, broker.relaunch, self._say_of_part, show_tail=True))
        return parts

    def _update(self, home: DataDir) -> None:
        """Start again what has ended, and show what the parts log."""
        started = [part.update() for part in self._parts]
        if any(started):
            self._record(home)

    def _say_of_part(self, line: str) -> None:
        # During the start, the parts warn that the others are missing.
        if not self._starting or " WARNING " not in line:
            self._say(line)

    def _say(self, line: str) -> None:
        with suppress(OSError, ValueError):  # the terminal is gone, and the parts go on
            self._progress.say(line)

    def _record(self, home: DataDir) -> None:
        try:
            home.record(self._pids())
        except OSError as exc:
            # Only a killed `stoplog up` needs the record.
            text = f"cannot write to {home.folder} ({exc.strerror}): see that its disk is not full"
            if self._throttle.admit(text) is not None:
                self._say(text)

    def _pids(self) -> list[int | None]:
        broker = self._broker.pid if self._broker else None
        return [*(child.pid for child in (*self._gateways, *self._workers)), broker]

    # --- the stop ---

    def _handle_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # `nohup` ignores SIGHUP, so that the end of the terminal stops nothing.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._interrupt)

    def _interrupt(self, _: int, __: FrameType | None) -> None:
        if not self._ending:
            raise KeyboardInterrupt

    def _stop(self) -> None:
        try:
            self._stop_in_order()
        except KeyboardInterrupt:
            self._ending = True
            for child in (*self._gateways, *self._workers):
                child.kill()
            if self._broker is not None:
                self._broker.kill()
        self._ending = True

    def _stop_in_order(self) -> None:
        # A gateway with several processes waits for them first.
        _stop_all(self._gateways, self._settings.stop_s + 1.0)
        for gateway in self._gateways:
            for line in gateway.warnings():  # such as the number of checks that are not counted
                self._say_of_part(f"{gateway.name} | {line}")
        _stop_all(self._workers, _WORKER_STOP_S)
        if self._broker is not None:
            self._broker.stop()


def _stop_all(children: Sequence[Child], timeout_s: float) -> None:
    """Stop *children* at the same time; kill those that still run after *timeout_s*."""
    until = time.monotonic() + timeout_s
    for child in children:
        child.terminate()
    for child in children:
        child.join(max(until - time.monotonic(), 0.0))
