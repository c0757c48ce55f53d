"""A whole system for end-to-end tests: broker, workers and gateways, each a real process."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx
from confluent_kafka import Consumer, TopicPartition
from stoplog_gateway.local.child_process import Child
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_gateway.ports import free_port
from stoplog_worker.verify.replay import Record, replay

from stoplog.partitioning import partition_of
from stoplog.policy import Policy, parse_policy
from stoplog.topics import CHECKS
from stoplog.wire.checks import Batch, Check, SingleCheck, decode_checks_record
from stoplog.wire.replies import Decision

PATIENCE_S: Final = 90.0
"""Seconds until an event that must happen counts as missing. An idle machine needs a tenth of it."""


STACKS: Final = Path(__file__).with_name("stacks")
"""Folder of a module that makes a process print its stacks when it gets SIGUSR1."""

_STACKS_S: Final = 5.0
"""Seconds that a process may take for that."""

DEGRADED_BEGAN: Final = "degraded: checks fail open"
DEGRADED_ENDED: Final = "normal again"


def eventually(what: str, condition: Callable[[], bool], *, on_failure: Callable[[], str] = str) -> None:
    """Return once *condition* holds. States of other processes have no event, so they are polled.

    Args:
        what: The expected state, for the error.
        condition: Returns whether it has been reached.
        on_failure: Returns more text for the error, such as the logs.

    Raises:
        AssertionError: The condition did not hold within :data:`PATIENCE_S`.
    """
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, f"not in {PATIENCE_S:g} s: {what}\n{on_failure()}"
        time.sleep(0.05)


def _is_stopped(pid: int) -> bool:
    """Return whether no thread of a process can run."""
    stats = [stat.read_text() for stat in Path("/proc", str(pid), "task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


class Process(Child):
    """A :class:`Child` that tests may signal and kill. ``tables`` is the folder of a worker."""

    tables: Path

    def signal(self, signum: int) -> None:
        """Send *signum*. After SIGSTOP, wait until all threads stand still: each one stops by itself."""
        assert self._process is not None
        self._process.send_signal(signum)
        if signum == signal.SIGSTOP:
            eventually("the process is stopped", partial(_is_stopped, self._process.pid))

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end."""
        self.signal(signal.SIGKILL)
        self.join(PATIENCE_S)

    def stop(self) -> int:
        """Send SIGTERM, wait for the end, and return the exit status."""
        self.terminate()
        self.join(PATIENCE_S)
        assert self.status is not None
        return self.status

    def restart(self, **settings: str) -> None:
        """Stop it, and start it again with *settings* changed."""
        self._env = {**self._env, **{f"STOPLOG_{key.upper()}": value for key, value in settings.items()}}
        self.stop()
        self.start()

    def stacks(self) -> str:
        """Return what its threads and tasks are doing; an empty text if it does not tell."""
        if self.status is not None or self._env.get("PYTHONPATH") != str(STACKS):
            return ""
        before = self.log.stat().st_size
        self.signal(signal.SIGUSR1)
        until, text = time.monotonic() + _STACKS_S, ""
        while "--- end of the stacks" not in text and time.monotonic() < until:
            time.sleep(0.05)
            with self.log.open("rb") as log:
                log.seek(before)
                text = log.read().decode(errors="replace")
        return text

    def lines(self, *needles: str) -> list[str]:
        """Return the lines of its log that contain all of *needles*."""
        text = self.log.read_text(errors="replace")
        return [line for line in text.splitlines() if all(needle in line for needle in needles)]


class Gateway(Process):
    """A gateway process, with an HTTP client for it."""

    def __init__(self, *args: Any, port: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def ready(self) -> bool:
        """Return whether the store answers its checks."""
        try:
            return self.http.get("/readyz?strict=1").status_code == 200
        except httpx.TransportError:
            return False

    def listens(self) -> bool:
        """Return whether it serves HTTP."""
        try:
            return self.http.get("/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def check(self, client_id: str, **fields: Any) -> dict[str, Any]:
        """Send ``POST /v1/check``; return the answer."""
        response = self.http.post("/v1/check", json={"client_id": client_id, **fields})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def set_limits(self, client_id: str, *limits: str) -> dict[str, Any]:
        """Send ``PUT /v1/limits``, which returns once the limits apply; return the answer."""
        response = self.http.put(f"/v1/limits/{client_id}", json={"limits": list(limits)})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples."""
        text = self.http.get("/metrics").text
        lines = (line for line in text.splitlines() if line.startswith((name + " ", name + "{")))
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def count(self, metric: str) -> int:
        """Return the value of a counter without labels."""
        lines = self.http.get("/metrics").text.splitlines()
        return next(int(float(line.split()[1])) for line in lines if line.startswith(f"{metric} "))

    def degraded_spells(self) -> tuple[int, int]:
        """Return how often it has logged that degraded mode began, and that it ended."""
        began, ended = (len(self.lines("WARNING", text)) for text in (DEGRADED_BEGAN, DEGRADED_ENDED))
        return began, ended

    def report(self) -> dict[str, Any]:
        """Return the answer to ``GET /v1/status``."""
        answer: dict[str, Any] = self.http.get("/v1/status").json()
        return answer


class System:
    """Broker, workers and gateways. A test starts the processes, and *stack* stops them at its end."""

    def __init__(self, broker: Broker, folder: Path, stack: ExitStack, **settings: Any) -> None:
        self.broker = broker
        self.workers: list[Process] = []
        self.gateways: list[Gateway] = []
        self.worker_settings: dict[str, Any] = {}
        """Settings of the workers that are added from now on. Gateways do not get them."""
        self.folder = folder
        # Tests wait for checkpoints, so these come sooner than by default.
        self._settings = {
            "kafka": broker.bootstrap,
            "home": folder,
            "flush_interval_ms": 1_000,
            **settings,
        }
        self._stack = stack
        self._numbers = count(1)

    @property
    def processes(self) -> list[Process]:
        """Return all its processes."""
        return [*self.workers, *self.gateways]

    @property
    def bootstrap(self) -> str:
        """Return the address of its Kafka."""
        return str(self._settings["kafka"])

    def add_worker(self, *module: str, env: Mapping[str, str] | None = None, **settings: Any) -> Process:
        """Start one more worker, or *module* in its place. *env* is added to its environment."""
        name = f"worker-{next(self._numbers)}"
        own = {"home": self.folder, "instance_id": name, "metrics_port": 0}
        settings = {**own, **self.worker_settings, **settings}
        worker = Process(
            name,
            [sys.executable, "-m", *(module or ("stoplog_worker", "worker"))],
            env={**self._env(**settings), **(env or {})},
            log=self.folder / f"{name}.log",
        )
        lane = f"lane-{settings['lane']}" if settings.get("lane") else ""
        worker.tables = Path(settings["home"], lane, settings["instance_id"])
        self.workers.append(worker)
        self._run(worker)
        return worker

    def add_gateway(self, *, env: Mapping[str, str] | None = None, **settings: Any) -> Gateway:
        """Start one more gateway. *env* is added to its environment."""
        name, port = f"gateway-{len(self.gateways) + 1}", free_port()
        gateway = Gateway(
            name,
            [sys.executable, "-m", "stoplog_gateway", "gateway"],
            env={**self._env(port=port, node_id=name, **{"drain_s": 0, **settings}), **(env or {})},
            log=self.folder / f"{name}.log",
            port=port,
        )
        self.gateways.append(gateway)
        self._stack.callback(gateway.http.close)
        self._run(gateway)
        return gateway

    def _env(self, **settings: Any) -> dict[str, str]:
        variables = {**self._settings, **settings}
        return {
            "PYTHONPATH": str(STACKS),
            **{f"STOPLOG_{key.upper()}": str(value) for key, value in variables.items()},
        }

    def _run(self, process: Process) -> None:
        process.start()

        def end() -> None:
            if process.status is None:
                process.signal(signal.SIGCONT)
                process.terminate()
                process.join(20)

        self._stack.callback(end)

    def wait_ready(self) -> None:
        """Return once the store answers the checks of every gateway."""
        for gateway in self.gateways:
            eventually(f"{gateway.name} is ready", gateway.ready, on_failure=self.logs)

    def wait_reservations(self) -> None:
        """Return once every gateway knows that all partitions grant reservations.

        Only a reservation shows it, and one that fails open counts as such. So a partition without any is
        asked again, and the others wait.
        """
        partitions = self.gateways[0].report()["partitions"]
        clients = {
            partition_of(name, partitions): name for name in (f"wait-{n}" for n in range(40 * partitions))
        }

        def granted(gateway: Gateway, client: str) -> bool:
            asked = {"client_id": client, "cost": 0, "ttl_ms": 1}
            return not gateway.http.post("/v1/reservations", json=asked).json()["degraded"]

        for gateway in self.gateways:
            for client in clients.values():
                asks = partial(granted, gateway, client)
                eventually(f"{gateway.name} reserves for {client}", asks, on_failure=self.logs)

    def logs(self) -> str:
        """Return the last lines of every log, and what each process is doing."""
        parts = [f"--- broker\n{self.broker.tail()}"]
        for process in (*self.workers, *self.gateways):
            tail = process.tail(30)  # before the stacks, which go to the same log
            parts.append(f"--- {process.name}\n{tail}\n--- stacks of {process.name}\n{process.stacks()}")
        return "\n".join(parts)

    def records(self, partition: int) -> list[Record]:
        """Return all records of ``checks[partition]``."""
        place = TopicPartition(CHECKS, partition, 0)
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": "oracle"})
        try:
            _, end = consumer.get_watermark_offsets(place, timeout=30)
            consumer.assign([place])
            found: list[Record] = []
            while not found or found[-1].offset < end - 1:
                if end == 0:
                    break
                message: Any = consumer.poll(30)
                assert message is not None, f"{CHECKS}[{partition}] cannot be read"
                assert message.error() is None, message.error()
                found.append(Record(message.offset(), message.timestamp()[1], message.value()))
            return found
        finally:
            consumer.close()

    def decisions(
        self, client: str, partition: int, default: Policy | None = None
    ) -> list[tuple[Check, Decision]]:
        """Return *client*'s checks in log order, with the decisions that follow from the log."""
        found = []
        records = self.records(partition)
        decided = dict(replay(records, partition, 4, default or parse_policy("100/minute")))
        for record in records:
            content = decode_checks_record(record.value)
            if isinstance(content, Batch | SingleCheck):
                checks = content.checks
                for check, answer in zip(checks, decided[record.offset], strict=True):
                    if check.client == client and isinstance(answer, Decision):
                        found.append((check, answer))
        return found

    def admitted(self, client: str, partition: int, default: Policy | None = None) -> int:
        """Return the total cost of *client*'s allowed checks, according to the log."""
        return sum(c.cost for c, decision in self.decisions(client, partition, default) if decision.allowed)


@contextmanager
def running_system(
    broker: Broker, folder: Path, *, workers: int = 1, gateways: int = 1, **settings: Any
) -> Iterator[System]:
    """Run a system; yield it once it is ready."""
    with ExitStack() as stack:
        system = System(broker, folder, stack)
        for _ in range(workers):
            system.add_worker()
        for _ in range(gateways):
            system.add_gateway(**settings)
        system.wait_ready()
        yield system
