"""The number of partitions grows while the system runs, under load and with kills in every step.

The tests use one system in the order of the file: its partitions grow from one test to the next.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import PartitionCountReader
from stoplog.topics import CHECKS
from stoplog.wire.partition_count import CountRecord
from tests.support.broker import fresh_broker, topics_file
from tests.support.meanwhile import meanwhile
from tests.support.system import PATIENCE_S, Gateway, System, eventually
from tests.support.up import environment, stoplog

LIMIT = 100_000
CLIENTS = [f"client-{number}" for number in range(30)]
LEASED = [f"leased-{number}" for number in range(10)]
"""Clients of the gateway with leases."""

WITH_LIMITS = CLIENTS[:10]


class Live:
    """A system with two lanes and two gateways, one of them with leases, and what its clients have spent."""

    def __init__(self, system: System, env: dict[str, str]) -> None:
        self.system = system
        self.env = env
        self.spent = Counter[str]()
        self.unanswered = Counter[str]()
        """Checks that failed open, by reason."""
        self._lock = threading.Lock()
        self._reader = PartitionCountReader(KafkaConnection(system.bootstrap))

    def record(self) -> CountRecord:
        """Return the record of the number of partitions."""
        record = self._reader.read_record()
        assert record is not None
        return record

    def spend(self, gateway: Gateway, client: str) -> dict[str, Any]:
        """Check a client; note what it has spent. A check without the store is not counted."""
        answer = gateway.check(client)
        assert answer["allowed"], answer
        with self._lock:
            if answer["degraded"]:
                self.unanswered[answer["reason"]] += 1
            if answer.get("reason") != "growing":
                self.spent[client] += 1
        return answer

    def _spend_next(self, gateway: Gateway, number: int) -> None:
        clients = LEASED if gateway is self.system.gateways[0] else CLIENTS
        self.spend(gateway, clients[number % len(clients)])

    @contextmanager
    def load(self) -> Iterator[None]:
        """Spend all the time, over all gateways."""
        with ExitStack() as stack:
            for gateway in self.system.gateways:
                stack.enter_context(meanwhile(partial(self._spend_next, gateway)))
            yield

    def assert_counts_continue(self) -> None:
        """Every client has spent exactly what was allowed, apart from checks that were not counted."""
        gateway = self.system.gateways[1]

        def used(clients: list[str]) -> dict[str, int]:
            answers = {client: gateway.check(client, cost=0) for client in clients}
            return {
                client: -1 if one["degraded"] else LIMIT - one["remaining"] for client, one in answers.items()
            }

        expected = {client: self.spent[client] for client in CLIENTS}
        eventually(
            "every client has spent what was allowed",
            lambda: used(CLIENTS) == expected,
            on_failure=lambda: f"{used(CLIENTS)}\n{expected}\n{self.system.logs()}",
        )
        # On a busy machine, permits may be given back too late. They are then charged.
        for client, spent in used(LEASED).items():
            assert self.spent[client] <= spent <= 1.5 * self.spent[client] + 500, client

    def assert_verified(self) -> None:
        """The answers in the log, the states and the audit agree."""
        with self.load():
            verified = stoplog("verify", "--seconds", "3", "--json", env=self.env)
        assert verified.returncode == 0, verified.stdout + verified.stderr

    def grow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return stoplog("topics", "grow", *arguments, env=self.env)

    @contextmanager
    def suspend_command(
        self, number: int, when: Callable[[CountRecord], bool]
    ) -> Iterator[subprocess.Popen[str]]:
        """Run the command, and send it SIGSTOP once the record is as *when* expects. Kill it at the end.

        It stands still while the record is read, so it cannot go on before the signal.
        """
        command = [sys.executable, "-m", "stoplog_gateway", "topics", "grow", str(number)]
        with subprocess.Popen(command, env=self.env, stderr=subprocess.PIPE, text=True) as process:

            def reached() -> bool:
                process.send_signal(signal.SIGSTOP)
                found = when(self.record())
                assert process.poll() is None, f"the command has ended before: {process.communicate()[1]}"
                if not found:
                    process.send_signal(signal.SIGCONT)
                return found

            try:
                eventually("the step is under way", reached)
                yield process
            finally:
                process.send_signal(signal.SIGKILL)

    def kill_command(self, number: int, when: Callable[[CountRecord], bool]) -> None:
        """Run the command, and send it SIGKILL once the record is as *when* expects."""
        with self.suspend_command(number, when) as process:
            pass
        assert process.wait(PATIENCE_S) == -signal.SIGKILL

    def partitions(self) -> int:
        """Return how many partitions ``checks`` has."""
        admin = AdminClient({"bootstrap.servers": self.system.bootstrap})
        return len(admin.list_topics(CHECKS, timeout=30).topics[CHECKS].partitions)


def has_recovered(gateway: Gateway) -> bool:
    """Return whether it has logged the end of degraded mode, once."""
    return gateway.degraded_spells() == (1, 1)


def answers(gateway: Gateway) -> bool:
    """Return whether the store answers a check."""
    return not gateway.check("x")["degraded"]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("growing")
    topics = topics_file(folder / "topics.yaml", 1)
    with fresh_broker(topics=False) as broker, ExitStack() as stack:
        env = environment(folder, STOPLOG_KAFKA=broker.bootstrap, STOPLOG_TOPICS=str(topics))
        assert stoplog("topics", "create", "--lanes", "2", env=env).returncode == 0
        settings = {"topics": topics, "deadline_ms": 2_000, "default_limits": f"{LIMIT}/day"}
        system = System(broker, folder, stack, **settings)
        system.add_worker()
        system.add_worker(lane="b")
        system.add_gateway()
        system.add_gateway(lease_max_ms=0)
        system.wait_ready()
        for client in WITH_LIMITS:
            system.gateways[0].set_limits(client, f"{LIMIT}/day", f"{LIMIT}/2d")
        yield Live(system, env)
        assert not any(one.lines(level) for one in system.processes for level in (" ERROR ", " CRITICAL "))


def test_lane_that_is_behind_without_workers_is_refused_before_the_pause(live: Live) -> None:
    worker, gateway = live.system.workers[1], live.system.gateways[1]
    worker.stop()
    live.spend(gateway, CLIENTS[0])
    for arguments in (("2", "--dry-run"), ("2",)):
        refused = live.grow(*arguments)
        assert refused.returncode == 1, refused.stdout
        assert "lane b has not decided all of checks[0]" in refused.stderr
    assert not live.record().step.epoch, "nothing has paused"
    worker.start()
    live.system.wait_ready()


def test_partitions_grow_under_load(live: Live) -> None:
    planned = live.grow("2", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    plan = json.loads(planned.stdout)
    assert (plan["before"], plan["after"], plan["lanes"], len(plan["nodes"])) == (1, 2, 2, 4)
    assert not live.record().step.epoch, "a dry run changes nothing"

    with live.load():
        grown = live.grow("2", "--json")
    assert grown.returncode == 0, grown.stderr + live.system.logs()
    report = json.loads(grown.stdout)
    assert (report["before"], report["after"], report["lanes"], report["nodes"]) == (1, 2, 2, 4)
    assert report["pause_seconds"] > 0
    assert report["uncounted"] == live.unanswered["growing"] > 0
    live.assert_counts_continue()
    for gateway in live.system.gateways:
        eventually("degraded mode ends", partial(has_recovered, gateway))
        (began,) = gateway.lines("WARNING", "degraded: ")
        (ended,) = gateway.lines("WARNING", "normal again")
        assert "the number of partitions grows from 1 to 2" in began
        assert "checks failed open" in ended
    uncounted = sum(gateway.metric("stoplog_checks_uncounted_total") for gateway in live.system.gateways)
    assert uncounted == report["uncounted"]
    live.assert_verified()


def test_killed_command_is_run_again(live: Live) -> None:
    first = live.system.gateways[0]
    with live.load():
        live.kill_command(4, lambda record: record.step.under_way)
        eventually("the gateway pauses", lambda: first.check("x")["reason"] == "growing")

        refused = live.grow("6", "--json")
        assert refused.returncode == 2
        assert "a command that grows to 4 was interrupted" in refused.stderr

        live.kill_command(4, lambda record: record.step.draining and live.partitions() == 4)
        epoch = live.record().step.epoch

    # The system waits now. A worker that is killed, and a gateway that starts, wait as well.
    worker = live.system.workers[0]
    eventually("the worker waits", lambda: bool(worker.lines("waiting: ", "from 2 to 4")))
    worker.kill()
    worker.start()
    second = live.system.gateways[1]
    second.kill()
    second.start()
    live.system.broker.kill()
    live.system.broker.start()
    third = live.system.add_gateway()
    eventually("it listens", third.listens)
    eventually("it pauses", lambda: third.check("x")["reason"] == "growing")
    denied = third.check("x", on_unavailable="deny")
    assert (denied["allowed"], denied["reason"]) == (False, "growing")
    changed = third.http.put("/v1/limits/x", json={"limits": ["5/minute"]})
    assert changed.status_code == 503, changed.text
    reserved = third.http.post("/v1/reservations", json={"client_id": "x", "cost": 5}).json()
    assert (reserved["allowed"], reserved["reason"]) == (True, "growing")
    assert not third.ready()
    assert "the number of partitions grows from 2 to 4" in third.report()["store_why"]

    with live.load():
        grown = live.grow("4", "--json")
    assert grown.returncode == 0, grown.stderr + live.system.logs()
    assert json.loads(grown.stdout)["after"] == 4
    assert live.record().step.epoch == epoch + 1
    live.system.wait_ready()
    live.assert_counts_continue()
    assert third.http.put("/v1/limits/x", json={"limits": ["5/minute"]}).status_code == 200


def test_step_is_aborted(live: Live) -> None:
    with (
        live.load(),
        live.suspend_command(8, lambda record: record.step.draining and live.partitions() == 8) as suspended,
    ):
        aborted = live.grow("--abort", "--json")
        assert aborted.returncode == 0, aborted.stderr
        assert json.loads(aborted.stdout) == {"aborted": True, "to": 8}
        for gateway in live.system.gateways:
            eventually("checks are answered", partial(answers, gateway))
        suspended.send_signal(signal.SIGCONT)
        _, error = suspended.communicate(timeout=PATIENCE_S)
        assert suspended.returncode == 1, error
        assert "another `stoplog topics grow` has begun, ended or aborted a step" in error
    record = live.record()
    assert (record.count.partitions, record.step.under_way) == (4, False)
    live.system.wait_ready()
    live.assert_counts_continue()
    assert json.loads(live.grow("--abort", "--json").stdout) == {"aborted": False, "to": None}
    # What the aborted step has copied is not used: since then, clients have spent more.
    with live.load():
        grown = live.grow("8", "--json")
    assert grown.returncode == 0, grown.stderr + live.system.logs()
    live.assert_counts_continue()
    live.assert_verified()
