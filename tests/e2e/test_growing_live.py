"""The number of partitions grows from 1 to 2, 4 and 16 while the system runs under load.

The command is killed, aborted and refused in between. The fault tests kill everything else, in every state
(:mod:`tests.support.faults.scenarios.growth`). The tests use one system in the order of the file: its
partitions grow from one test to the next.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any, Final

import pytest
from stoplog_worker.growth.grow import grow
from stoplog_worker.growth.step import abort
from stoplog_worker.settings import Settings

from stoplog.errors import InvalidInput, TopicError
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import PartitionCountReader
from stoplog.wire.partition_count import CountRecord
from tests.support.broker import fresh_broker, topics_file
from tests.support.halting_grow import COPIED, COPYING, DRAINING, HaltingGrow, halting_grow
from tests.support.meanwhile import meanwhile
from tests.support.system import Gateway, System, eventually
from tests.support.up import environment, stoplog

LIMIT = 100_000
CLIENTS = [f"client-{number}" for number in range(30)]
LEASED = [f"leased-{number}" for number in range(10)]
"""Clients of the gateway with leases."""

WITH_LIMITS = CLIENTS[:10]

PACE_S: Final = 0.02
"""Seconds between two checks at a gateway. Faster ones would only take the time of the other processes."""


class Live:
    """A system with two lanes and two gateways, one of them with leases, and what its clients have spent."""

    def __init__(self, system: System, env: dict[str, str]) -> None:
        self.system = system
        self.env = env
        self.exact = system.gateways[1]
        """The gateway without leases: what remains is exact there."""
        self.spent = Counter[str]()
        self.unanswered = Counter[str]()
        """Checks that failed open, by reason."""
        self._lock = threading.Lock()
        self.connection = KafkaConnection(system.bootstrap)
        self._reader = PartitionCountReader(self.connection)

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
        clients = CLIENTS if gateway is self.exact else LEASED
        self.spend(gateway, clients[number % len(clients)])
        sleep(PACE_S)

    @contextmanager
    def load(self) -> Iterator[None]:
        """Spend all the time, over all gateways."""
        with ExitStack() as stack:
            for gateway in self.system.gateways:
                stack.enter_context(meanwhile(partial(self._spend_next, gateway)))
            yield

    def assert_counts_continue(self) -> None:
        """Every client has spent exactly what was allowed, apart from checks that were not counted."""
        gateway = self.exact

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

    def halting(self, number: int) -> AbstractContextManager[HaltingGrow]:
        """Return the command, which halts in each state of the step."""
        return halting_grow(number, self.env, self.system.folder / "grow.log")

    def grow_here(self, number: int) -> None:
        """Run what the command runs in this process: it is refused."""
        topics = Path(self.env["STOPLOG_TOPICS"])
        grow(Settings(kafka=self.system.bootstrap, topics=topics), number, lambda *_: None)


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
    worker = live.system.workers[1]
    worker.stop()
    live.spend(live.exact, CLIENTS[0])
    with pytest.raises(TopicError, match=r"lane b has not decided all of checks\[0\]"):
        live.grow_here(2)
    assert not live.record().step.epoch, "nothing has paused"
    worker.start()
    eventually("it decides again", lambda: len(worker.lines("judging from")) == 2, on_failure=worker.tail)


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
    print(report)
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


def test_killed_command_is_run_again(live: Live) -> None:
    first = live.system.gateways[0]
    live.system.wait_reservations()
    asked = {"client_id": "holder", "cost": 500, "ttl_ms": 3_600_000}
    held = first.http.post("/v1/reservations", json=asked).json()
    assert (held["degraded"], held["held"]) == (False, 500), held
    with live.load():
        with live.halting(4) as command:
            command.reach(DRAINING)
            command.kill()
        eventually("the gateway pauses", lambda: first.check("x")["reason"] == "growing")
        with pytest.raises(InvalidInput, match="a command that grows to 4 was interrupted"):
            live.grow_here(6)
        with live.halting(4) as command:
            command.reach(COPYING)
            command.kill()
        epoch = live.record().step.epoch

    # The system waits now, and so does a gateway that starts.
    waits = partial(live.system.workers[0].lines, "waiting: ", "from 2 to 4")
    eventually("the worker waits", lambda: bool(waits()))
    third = live.system.add_gateway()
    eventually("it listens", third.listens)
    eventually("it pauses", lambda: third.check("x")["reason"] == "growing")
    denied = third.check("x", on_unavailable="deny")
    assert (denied["allowed"], denied["reason"]) == (False, "growing")
    changed = third.http.put("/v1/limits/x", json={"limits": ["5/minute"]})
    assert changed.status_code == 503, changed.text
    reserved = third.http.post("/v1/reservations", json={"client_id": "x", "cost": 5}).json()
    assert (reserved["allowed"], reserved["reason"]) == (True, "growing")
    settled = third.http.post(f"/v1/reservations/{held['id']}/settle", json={"used": 30}).json()
    assert (settled["state"], settled["reason"]) == ("unconfirmed", "growing")
    assert not third.ready()
    assert "the number of partitions grows from 2 to 4" in third.report()["store_why"]

    with live.load():
        grown = live.grow("4", "--json")
    assert grown.returncode == 0, grown.stderr + live.system.logs()
    print(grown.stdout)
    assert json.loads(grown.stdout)["after"] == 4
    assert live.record().step.epoch == epoch + 1
    live.assert_counts_continue()
    assert third.http.put("/v1/limits/x", json={"limits": ["5/minute"]}).status_code == 200
    eventually(
        "the settlement of the pause is made",
        lambda: live.exact.check("holder", cost=0)["remaining"] == LIMIT - 30,
        on_failure=third.tail,
    )


def test_step_is_aborted_and_taken_later(live: Live) -> None:
    with live.load(), live.halting(8) as command:
        command.reach(COPIED)
        aborted = live.grow("--abort", "--json")
        assert aborted.returncode == 0, aborted.stderr
        assert json.loads(aborted.stdout) == {"aborted": True, "to": 8}
        for gateway in live.system.gateways:
            eventually("checks are answered", partial(answers, gateway))
        assert list(command.states()) == []
        assert command.status == 1, command.errors
        assert "another `stoplog topics grow` has begun, ended or aborted an attempt" in command.errors
    record = live.record()
    assert (record.count.partitions, record.step.under_way) == (4, False)
    live.assert_counts_continue()
    assert abort(live.connection) is None, "there is nothing to abort any more"
    # What the aborted step has copied is not used: since then, clients have spent more.
    before = live.unanswered["growing"]
    with live.load():
        grown = live.grow("16", "--json")
    assert grown.returncode == 0, grown.stderr + live.system.logs()
    report = json.loads(grown.stdout)
    print(report, live.unanswered["growing"] - before)
    assert report["uncounted"] == live.unanswered["growing"] - before > 0
    live.assert_counts_continue()
    live.assert_verified()
