"""The number of partitions grows: counts, limits and versions continue."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_worker.growth.grow import grow
from stoplog_worker.growth.step import Step
from stoplog_worker.settings import Settings

from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import PartitionCountReader
from tests.support.broker import fresh_broker, topics_file
from tests.support.meanwhile import meanwhile
from tests.support.system import System, eventually
from tests.support.up import environment, stoplog

CLIENTS = [f"client-{number}" for number in range(40)]
WITH_LIMITS = CLIENTS[:10]
WITH_PLAN = CLIENTS[10:20]


@pytest.fixture
def broker() -> Iterator[Broker]:
    with fresh_broker(topics=False) as broker:
        yield broker


class Growing:
    """A system with two lanes, and the command that makes its partitions grow."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self.env = environment(folder, STOPLOG_KAFKA=system.bootstrap)
        self.spent = dict.fromkeys(CLIENTS, 0)
        self.limit = self.plan = 0

    def set_limits(self, limit: int) -> None:
        """Give some clients limits of their own."""
        for client in WITH_LIMITS:
            self.system.gateways[-1].set_limits(client, f"{limit}/hour")
        self.limit = limit

    def set_plan(self, limit: int) -> None:
        """Set the limits of the plan."""
        answer = self.system.gateways[-1].http.put("/v1/plans/gold", json={"limits": [f"{limit}/hour"]})
        assert answer.status_code == 200, answer.text
        self.plan = limit

    def spend(self, cost: int) -> None:
        """Check every client, and compare what remains with everything that was spent since the beginning."""
        for client in CLIENTS:
            plan = {"plan": "gold"} if client in WITH_PLAN else {}
            answer = self.system.gateways[-1].check(client, cost=cost, **plan)
            self.spent[client] += cost
            limit = self.limit if client in WITH_LIMITS else self.plan if plan else 100
            assert (answer["degraded"], answer["limit"]) == (False, limit), answer
            assert answer["remaining"] == limit - self.spent[client], (client, answer)

    def grow(self, number: int) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        return stoplog("topics", "grow", str(number), "--json", env=self.env)

    def stop(self) -> None:
        """Stop everything, in the order that the documentation gives."""
        for process in (*self.system.gateways, *self.system.workers):
            if process.status is None:
                assert process.stop() == 0

    def start(self) -> None:
        """Start everything that was stopped."""
        for process in self.system.processes:
            if process.status is not None:
                process.start()
        self.system.wait_ready()


def test_counts_limits_and_plans_continue_when_partitions_grow(broker: Broker, tmp_path: Path) -> None:
    topics = topics_file(tmp_path / "topics.yaml", 1)
    env = environment(tmp_path, STOPLOG_KAFKA=broker.bootstrap, STOPLOG_TOPICS=str(topics))
    created = stoplog("topics", "create", "--lanes", "2", env=env)
    assert created.returncode == 0, created.stderr
    # Without leases, each answer shows what the log contains. Checks wait for a restore.
    settings = {"topics": topics, "deadline_ms": 20_000, "lease_max_ms": 0, "default_limits": "100/hour"}
    with ExitStack() as stack:
        system = System(broker, tmp_path, stack, **settings)
        system.add_worker()
        system.add_worker(lane="b")
        system.add_gateway()
        system.wait_ready()
        growing = Growing(system, tmp_path)
        (gateway,) = system.gateways
        growing.set_limits(500)
        growing.set_plan(300)
        growing.spend(3)

        for number, runs in ((2, False), (4, False), (16, True)):
            if not runs:
                growing.stop()
            grown = growing.grow(number)
            assert grown.returncode == 0, grown.stderr
            report = json.loads(grown.stdout)
            assert (report["after"], report["lanes"]) == (number, 2)
            assert (report["nodes"], report["uncounted"]) == (3 if runs else 0, 0)
            growing.start()
            growing.spend(2)
        count = PartitionCountReader(KafkaConnection(broker.bootstrap)).read()
        assert count is not None
        assert (count.partitions, count.first) == (16, 1)

        # Limits, plans and resets reach their clients where they are now.
        growing.set_limits(600)
        growing.set_plan(400)
        growing.spend(1)
        for client in CLIENTS[::4]:
            assert gateway.http.post(f"/v1/clients/{client}/reset").status_code == 200
            growing.spent[client] = 0
        growing.spend(1)
        listed = gateway.http.get("/v1/limits", params={"limit": 1_000}).json()["items"]
        found = [(one["kind"], one["id"], one["limits"]) for one in listed]
        assert sorted(found) == sorted(
            [("plan", "gold", ["400/hour"]), *(("client", one, ["600/hour"]) for one in WITH_LIMITS)]
        )

        # A worker that has lost its disk restores what the command has written.
        first, second = system.workers
        assert first.stop() == second.stop() == 0
        shutil.rmtree(first.tables)
        shutil.rmtree(second.tables)
        growing.start()
        eventually("the workers have all partitions", lambda: gateway.report()["store"] == "ok")
        growing.spend(1)
        with meanwhile(lambda _: growing.spend(0)):
            verified = stoplog("verify", "--seconds", "5", "--json", env=growing.env)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert not any(worker.lines("WARNING") for worker in system.workers), system.logs()
        eventually("degraded mode has ended", lambda: gateway.degraded_spells() == (1, 1))


def test_interrupted_command_begins_again_after_the_system_has_run(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = topics_file(tmp_path / "topics.yaml", 1)
    settings = {"topics": topics, "deadline_ms": 20_000, "lease_max_ms": 0, "default_limits": "100/hour"}
    env = environment(tmp_path, STOPLOG_KAFKA=broker.bootstrap, STOPLOG_TOPICS=str(topics))
    assert stoplog("topics", "create", env=env).returncode == 0
    with ExitStack() as stack:
        system = System(broker, tmp_path, stack, **settings)
        system.add_worker()
        system.add_gateway()
        system.wait_ready()
        growing = Growing(system, tmp_path)
        growing.set_limits(500)
        growing.set_plan(300)
        growing.spend(3)
        growing.stop()

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Step, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            grow(Settings(kafka=broker.bootstrap, topics=topics), 2, lambda *_: None)

        growing.start()
        growing.spend(1)
        gateway = system.gateways[0]
        for client in WITH_LIMITS:
            assert gateway.http.delete(f"/v1/limits/{client}").status_code == 200
        for client in CLIENTS[::2]:
            assert gateway.http.post(f"/v1/clients/{client}/reset").status_code == 200
            growing.spent[client] = 0
        growing.limit = 100  # the default again
        growing.stop()
        grown = growing.grow(2)
        assert grown.returncode == 0, grown.stderr
        growing.start()
        growing.spend(1)
        assert {one["kind"] for one in gateway.http.get("/v1/limits").json()["items"]} == {"plan"}
