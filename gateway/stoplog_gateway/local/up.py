"""`stoplog up`: all parts as processes on this machine, from the broker to the first answered check.

The parts start in the order broker, topics, workers, gateways. They stop in the reverse order, so that checks
in flight are still answered. A process that ends by itself is started again.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

import httpx

from stoplog.client.cluster_status import OK, UNDER_REPLICATED
from stoplog.errors import StoplogError
from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import PartitionCountReader
from stoplog.kafka.topic_admin import create_topics
from stoplog.lanes import lane_names, with_lanes, worker_name
from stoplog.partitioning import partition_of
from stoplog.topics import CHECKS, load_topics, with_partitions
from stoplog_gateway.kafka_reachable import ensure_reachable
from stoplog_gateway.local.child_process import USAGE_EXITS, Child
from stoplog_gateway.local.data_dir import DataDir
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_gateway.local.kafka_jars import KAFKA_VERSION, jars_folder
from stoplog_gateway.ports import MAX_PORT, ensure_free, free_port, is_free, url_of
from stoplog_gateway.settings import GatewaySettings

_READY_S: Final = 90.0
"""A start takes 10 s. Restoring large tables after a crash takes longer."""

_WORKER_STOP_S: Final = 20.0
_POLL_S: Final = 0.1
_METRICS_PORT: Final = 9101


class UpFailed(StoplogError):
    """A part cannot run; the text states which, and why."""


class Progress(Protocol):
    """Where a start shows how far it is."""

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
        progress: Where to show what happens.
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
        self._urls = [url_of(host, port) for port in self._ports]
        self._home = settings.home.resolve()
        self._lanes = lane_names(lanes)
        self._workers = [
            self._worker(lane, number, index * workers + number)
            for index, lane in enumerate(self._lanes)
            for number in range(1, workers + 1)
        ]
        self._gateways = [self._gateway(number, port) for number, port in enumerate(self._ports, 1)]
        self._restarts: dict[Child, float] = {}
        self._answering = False
        self._killing = False

    def run(self) -> None:
        """Start everything, keep it running until SIGINT, SIGTERM or SIGHUP, and stop it.

        Raises:
            DataDirInUse: another `stoplog up` runs on this data folder.
            BrokerFailed: the embedded broker cannot run.
            KafkaUnreachable: the Kafka named by ``STOPLOG_KAFKA`` does not answer.
            TopicError: its topics differ from topics.yaml.
            CannotListen: a gateway's port or address cannot be used.
            UpFailed: a process cannot run.
        """
        home = DataDir(self._home, self._urls[0])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)
        try:
            if stopped := home.stop_leftovers():
                self._progress.say(f"stopped {stopped} processes that a killed `stoplog up` had left running")
            self._start(home)
            while True:
                self._supervise(home)
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            self._progress.say("stopping ... (press Ctrl-C again to stop at once)")
        finally:
            self._stop()
            home.release()

    def _start(self, home: DataDir) -> None:
        specs = load_topics(self._settings.topics)
        for port in self._ports:
            ensure_free(port, self._settings.host)
        if self._broker is not None:
            fetching = "" if jars_folder(self._home).exists() else " (fetching it once, 45 MB)"
            self._progress.say(f"starting Apache Kafka {KAFKA_VERSION}{fetching} ...")
            self._broker.launch()
            self._record(home)
            self._progress.show("waiting for the broker")
            self._broker.wait_ready()
        broker = self._broker
        connection = KafkaConnection(broker.bootstrap) if broker else self._settings.connection
        ensure_reachable(connection)
        recorded = PartitionCountReader(connection).read()
        if recorded is not None:
            specs = with_partitions(specs, recorded)
        topics = with_lanes(specs, self._lanes).values()
        create_topics(silent_admin(connection), topics, recorded=recorded is not None)
        self._progress.say("starting worker and gateway ...")
        for child in (*self._workers, *self._gateways):
            child.start()
        self._record(home)
        self._await_answers(home, specs[CHECKS].partitions)
        self._answering = True
        self._ready(self._urls)

    def _worker(self, lane: str, number: int, of_all: int) -> Child:
        name = worker_name(lane, number)
        first = os.environ.get("STOPLOG_METRICS_PORT", _METRICS_PORT)
        if not str(first).isdecimal() or int(first) > MAX_PORT:
            raise UpFailed(f"STOPLOG_METRICS_PORT={first} is not a port: use 0 (any free one) to {MAX_PORT}")
        port = int(first) + of_all - 1
        env = {
            "STOPLOG_INSTANCE_ID": name,
            "STOPLOG_LANE": lane,
            # Scrapers find the same port after each start, unless another program has taken it.
            "STOPLOG_METRICS_PORT": str(port if int(first) and is_free(port) else 0),
        }
        return self._child(name, ["-m", "stoplog_worker", "worker"], env)

    def _gateway(self, number: int, port: int) -> Child:
        # No load balancer stands in front of it, and Ctrl-C should end it soon.
        env = {"STOPLOG_PORT": str(port), "STOPLOG_DRAIN_S": os.environ.get("STOPLOG_DRAIN_S", "0")}
        if number > 1:
            env["STOPLOG_ENVOY"] = ""  # only one gateway can listen on this address
            if self._settings.node_id:
                env["STOPLOG_NODE_ID"] = f"{self._settings.node_id}-{number}"
        return self._child(f"gateway-{number}", ["-m", "stoplog_gateway", "gateway"], env)

    def _child(self, name: str, arguments: list[str], env: dict[str, str]) -> Child:
        env |= {"STOPLOG_KAFKA": self._settings.bootstrap, "STOPLOG_HOME": str(self._home)}
        return Child(name, [sys.executable, *arguments], env=env, log=Path(self._home, "logs", f"{name}.log"))

    def _await_answers(self, home: DataDir, partitions: int) -> None:
        """Wait until every gateway has had an answer from the owner of every partition."""
        checks = [{"client_id": client, "cost": 0} for client in _clients_of_all(partitions)]
        deadline = time.monotonic() + _READY_S
        waiting = list(self._urls)
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            while waiting:
                self._supervise(home)
                if time.monotonic() > deadline:
                    raise UpFailed(f"{waiting[0]} did not answer a check in {_READY_S:.0f} s; {self._logs()}")
                answered = _answered(client, waiting[0], checks)
                if answered == partitions:
                    waiting.pop(0)
                else:
                    self._progress.show(f"waiting: {answered} of {partitions} partitions answer")
                    time.sleep(_POLL_S)

    def _supervise(self, home: DataDir) -> None:
        """Show warnings that the processes log, and start processes again that have ended."""
        if self._broker is not None and not self._broker.running:
            self._progress.say(
                f"the broker stopped by itself; starting it again. The end of its log:\n{self._broker.tail()}"
            )
            self._broker.start()
            self._record(home)
        for child in (*self._workers, *self._gateways):
            for line in child.warnings():
                # During the start they warn that the others are missing.
                if self._answering or " WARNING " not in line:
                    self._progress.say(f"{child.name} | {line}")
            if child.status is not None:
                self._start_again(child, home)

    def _start_again(self, child: Child, home: DataDir) -> None:
        if child not in self._restarts:
            if child.status in USAGE_EXITS:
                raise UpFailed(f"{child.name} cannot run; the end of {child.log}:\n{child.tail()}")
            delay = child.next_delay()
            self._restarts[child] = time.monotonic() + delay
            self._progress.say(
                f"{child.name} ended (status {child.status}); starting it again in {delay:.1f} s"
            )
        elif time.monotonic() >= self._restarts[child]:
            del self._restarts[child]
            child.start()
            self._record(home)

    def _stop(self) -> None:
        try:
            self._stop_in_order()
        except KeyboardInterrupt:
            self._killing = True
            for child in (*self._gateways, *self._workers):
                child.kill()
            if self._broker is not None:
                self._broker.kill()

    def _stop_in_order(self) -> None:
        gateway_stop_s = self._settings.stop_s + 1.0  # a parent waits for its processes first
        for children, timeout_s in ((self._gateways, gateway_stop_s), (self._workers, _WORKER_STOP_S)):
            for child in children:
                child.terminate()
            for child in children:
                child.join(timeout_s)
        if self._broker is not None:
            self._broker.stop()

    def _interrupt(self, _: int, __: FrameType | None) -> None:
        if not self._killing:
            raise KeyboardInterrupt

    def _pids(self) -> list[int | None]:
        broker = self._broker.pid if self._broker else None
        return [*(child.pid for child in (*self._gateways, *self._workers)), broker]

    def _record(self, home: DataDir) -> None:
        home.record(self._pids())

    def _logs(self) -> str:
        children = (*self._workers, *self._gateways)
        return "".join(f"\nthe end of {child.log}:\n{child.tail()}" for child in children)


def _answered(client: httpx.Client, url: str, checks: list[dict[str, Any]]) -> int:
    """Return how many of *checks* the gateway at *url* gets answered by workers.

    No check is sent before the gateway knows of workers: missed deadlines would put it into degraded mode.
    """
    try:
        status = client.get(f"{url}/v1/status").raise_for_status().json()
        if status["store"] not in (OK, UNDER_REPLICATED):
            return 0
        answers = client.post(f"{url}/v1/checks", json=checks).raise_for_status().json()
    except httpx.HTTPError:
        return 0
    return sum(not answer["degraded"] for answer in answers)


def _clients_of_all(partitions: int) -> list[str]:
    """Return one client id for each partition."""
    found: dict[int, str] = {}
    numbers = count()
    while len(found) < partitions:
        client = f"stoplog-up-{next(numbers)}"
        found.setdefault(partition_of(client, partitions), client)
    return list(found.values())
