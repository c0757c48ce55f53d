"""Clients that leases admit: on a real broker, with real gateways and workers, and the log as oracle."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

import httpx
import pytest
from stoplog_worker.partition.live_workers import EXPIRY_S
from stoplog_worker.verify.replay import replay

from stoplog import BlockingLimiter, Limiter, __version__
from stoplog.client.lease_cache import LAST_PAUSE_S
from stoplog.partitioning import partition_of
from stoplog.policy import parse_policy
from stoplog.wire.checks import Batch, decode_checks_record
from stoplog.wire.holds import SettlementBatch
from stoplog.wire.limit_updates import ENABLE_HOLDS, Update
from stoplog.wire.replies import Decision
from tests.support.broker import fresh_broker
from tests.support.old_release import OldRelease
from tests.support.system import PATIENCE_S, Gateway, Process, System, eventually

PARTITIONS = 4
HITS = "stoplog_lease_hits_total"
PERMITS = "stoplog_lease_permits_{}_total"
DEFAULT = parse_policy("100/minute")


class MixedSystem(NamedTuple):
    """A system with a worker of this release and one of release 0.2.0, which a test may stop."""

    running: System
    old: Process


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedSystem]:
    """Run one system for all tests. Each test has its own clients, and the last ones stop processes."""
    folder = tmp_path_factory.mktemp("system")
    release = OldRelease("0.2.0", tmp_path_factory.mktemp("release"))
    # A busy machine does not miss this deadline, so no check fails open while a worker lives.
    settings: dict[str, Any] = {"deadline_ms": 20_000}
    with fresh_broker() as broker, ExitStack() as stack:
        system = System(broker, folder, stack)
        old = system.add_worker(env=release.env)
        system.add_worker()
        for _ in range(2):
            system.add_gateway(**settings)
        system.wait_ready()
        eventually(
            "both workers judge",
            lambda: all(worker.lines("judging from") for worker in system.workers),
            on_failure=system.logs,
        )
        system.workers.remove(old)
        yield MixedSystem(system, old)


@pytest.fixture(scope="module")
def system(mixed: MixedSystem) -> System:
    """Stop the old worker. Return the system once the partitions grant holds."""
    if mixed.old.status is None:
        assert mixed.old.stop() == 0
    [worker] = mixed.running.workers
    eventually(
        "holds are enabled", lambda: len(worker.lines("grants holds")) == PARTITIONS, on_failure=worker.tail
    )
    return mixed.running


class Admission(NamedTuple):
    """When an allowed check was sent, and when its answer came."""

    sent_at: float
    answered_at: float


def load(gateway: Gateway, client: str, seconds: float) -> tuple[list[Admission], int]:
    """Send checks one after the other; return the admissions, and how many checks were sent."""
    admitted, sent, until = [], 0, time.monotonic() + seconds
    with httpx.Client(base_url=gateway.url, timeout=60, trust_env=False) as http:
        while (began := time.monotonic()) < until:
            sent += 1
            answer: dict[str, Any] = http.post("/v1/check", json={"client_id": client}).json()
            assert not answer["degraded"], answer
            if answer["allowed"]:
                admitted.append(Admission(began, time.monotonic()))
    return admitted, sent


def warm(gateway: Gateway, client: str) -> None:
    """Send checks of *client* until permits answer one."""
    hits = gateway.metric(HITS)

    def hit() -> bool:
        for _ in range(10):
            assert gateway.check(client)["allowed"]
        return gateway.metric(HITS) > hits

    eventually(f"{client} has a lease", hit)


def test_worker_of_release_0_2_0_keeps_the_gate_closed_and_can_take_over(mixed: MixedSystem) -> None:
    """The clients, of all partitions, are hot and have limits. Each worker in turn judges all of them."""
    system, old = mixed
    [new] = system.workers
    here, there = system.gateways
    versions = {node["version"] for node in here.report()["nodes"] if node["role"] == "worker"}
    assert versions == {"0.2.0", __version__}
    clients = [f"mixed-{number}" for number in range(8)]
    assert {partition_of(client, PARTITIONS) for client in clients} == set(range(PARTITIONS))

    def spend(checks: int) -> None:
        for _ in range(checks):
            for gateway in (here, there):
                for client in clients:
                    answer = gateway.check(client)
                    assert (answer["allowed"], answer["degraded"]) == (True, False), answer

    for client in clients:
        here.set_limits(client, "60/hour")
    # Without the old worker, the gate would open meanwhile. That it stays closed has no event.
    time.sleep(EXPIRY_S + 3)
    assert not new.lines("grants holds")
    spend(10)
    assert new.stop() == 0
    spend(10)
    new.start()
    eventually("it has joined", lambda: len(new.lines("generation")) > 1, on_failure=system.logs)
    spend(10)
    assert not any(gateway.metric(HITS) for gateway in system.gateways)
    assert not new.lines("grants holds")
    contents = [decode_checks_record(one.value) for p in range(PARTITIONS) for one in system.records(p)]
    assert not [one for one in contents if isinstance(one, Update) and one.key == ENABLE_HOLDS]
    assert old.stop() == 0
    for client in clients:
        assert not here.check(client)["allowed"], "a check is missing in the count"


def test_hot_client_of_two_gateways_is_never_admitted_above_its_limits(system: System) -> None:
    client, limits = "hot", ["300/10s", "1200/2m"]
    system.gateways[0].set_limits(client, *limits)
    hits = sum(gateway.metric(HITS) for gateway in system.gateways)
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(load, gateway, client, 24.0) for gateway in system.gateways * 2]
        results = [run.result() for run in runs]
    admitted = sorted(one for found, _ in results for one in found)
    assert sum(gateway.metric(HITS) for gateway in system.gateways) > hits, "no lease was used"
    assert len(admitted) > 500
    # What was sent and answered within an interval was admitted within it, by whichever gateway.
    for limit in parse_policy(limits).limits:
        for first, (sent_at, _) in enumerate(admitted):
            end = sent_at + limit.window_ms / 1_000
            last = bisect_left(admitted, Admission(end, 0.0))
            within = sum(one.answered_at <= end for one in admitted[first:last])
            assert within <= limit.max, (limit, within)


@pytest.mark.parametrize("writer", [0, 1], ids=["through the same gateway", "through another"])
def test_change_of_limits_is_obeyed_by_the_next_check_after_its_answer(system: System, writer: int) -> None:
    here, there, client = system.gateways[0], system.gateways[writer], f"changed-{writer}"
    for _ in range(3):
        there.set_limits(client, "100000/minute")
        warm(here, client)
        there.set_limits(client, "1/hour")
        assert not here.check(client)["allowed"]
        assert there.http.post(f"/v1/clients/{client}/reset").json()["applied"]


@pytest.mark.parametrize("writer", [0, 1], ids=["through the same gateway", "through another"])
def test_reset_is_obeyed_by_the_next_check_after_its_answer(system: System, writer: int) -> None:
    here, there, client = system.gateways[0], system.gateways[writer], f"reset-{writer}"
    here.set_limits(client, "60/minute")
    for _ in range(2):
        while here.check(client)["allowed"]:
            pass
        assert there.http.post(f"/v1/clients/{client}/reset").json()["applied"]
        assert here.check(client)["allowed"]


@pytest.mark.parametrize("threads", [False, True], ids=["Limiter", "BlockingLimiter"])
async def test_program_with_the_sdk_gets_leases_and_gives_them_back_at_its_end(
    system: System, *, threads: bool
) -> None:
    here, client, admitted = system.gateways[0], f"sdk-{threads}", 0
    here.set_limits(client, "100000/hour")
    until = time.monotonic() + PATIENCE_S
    if threads:
        with BlockingLimiter(system.bootstrap, deadline_ms=20_000) as blocking:
            metrics = blocking._limiter.metrics
            while metrics.lease_hits < 50 and time.monotonic() < until:
                admitted += blocking.check(client).allowed
    else:
        async with Limiter(system.bootstrap, deadline_ms=20_000) as limiter:
            metrics = limiter.metrics
            while metrics.lease_hits < 50 and time.monotonic() < until:
                admitted += (await limiter.check(client)).allowed
    assert metrics.lease_hits >= 50
    # A program that stands still for seconds loses what is left of a lease.
    assert here.check(client, cost=0)["remaining"] == 100_000 - admitted - metrics.lease_expired


class Pace:
    """Checks of one client at a steady pace, with a control that shows whether the gateway has its proof.

    The control is a client with a cached denial, which needs the same proof as a permit does. Both checks
    travel in one list, so they are answered in the same turn of the gateway's event loop.
    """

    EVERY_S = 0.05

    def __init__(self, gateway: Gateway, hot: str, denied: str) -> None:
        self.gateway = gateway
        self.due = time.monotonic()
        self.checks = [{"client_id": hot}, {"client_id": denied}]

    def send(self) -> tuple[float, dict[str, Any], dict[str, Any]]:
        """Wait until it is time; return when the checks were sent, and both answers."""
        time.sleep(max(0.0, self.due - time.monotonic()))
        sent_at = time.monotonic()
        self.due = max(self.due + self.EVERY_S, sent_at)
        hot, denied = self.gateway.http.post("/v1/checks", json=self.checks).raise_for_status().json()
        return sent_at, hot, denied

    def until_lease(self, least: int) -> tuple[float, int]:
        """Send until a check brings a lease of *least* permits or more; return when it was sent, and them."""
        granted = self.gateway.metric(PERMITS.format("granted"))
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            sent_at, hot, denied = self.send()
            assert (hot["allowed"], hot["degraded"]) == (True, False), hot
            assert (denied["allowed"], denied["degraded"]) == (False, False), denied
            before, granted = granted, self.gateway.metric(PERMITS.format("granted"))
            if granted - before >= least:
                return sent_at, int(granted - before)
        raise AssertionError(f"no lease of {least} permits")


def test_hot_client_is_answered_exactly_after_its_worker_died_until_its_lease_ends(system: System) -> None:
    """A gateway with the usual deadline: checks that carry asks wait for it, then permits answer them.

    A stall of this machine may end the proof, and with it the lease. The control shows it, and the worker is
    then killed once more. What is not exact while the control is, is a defect.
    """
    [worker], here = system.workers, system.add_gateway()
    system.wait_ready()
    system.gateways.remove(here)
    here.set_limits("warm", "1000000/minute")
    here.set_limits("control", "1/day")
    # A twentieth of the window, less what clocks may differ by. The last tenth of a second is for the report.
    serves_s = 60 / 20 * 30 / 31 - 0.005 - 1.1 * LAST_PAUSE_S
    try:
        for _ in range(5):
            pace = Pace(here, "warm", "control")
            here.check("control")
            began, permits = pace.until_lease(least=30)
            worker.kill()
            killed_at, proven = time.monotonic(), True
            exact: list[float] = []
            while proven and len(exact) < permits - 1:
                sent_at, hot, denied = pace.send()
                if time.monotonic() >= began + serves_s:
                    break
                proven = not denied["degraded"]
                if proven:
                    assert (hot["allowed"], hot["degraded"]) == (True, False), (hot, sent_at - began)
                    exact.append(sent_at - killed_at)
            if not proven:
                worker.start()
                system.wait_ready()
                eventually("the gateway is ready", here.ready, on_failure=system.logs)
                continue
            assert len(exact) > 10
            assert exact[-1] > serves_s / 2
            assert here.check("cold")["degraded"]
            until = time.monotonic() + PATIENCE_S
            while not pace.send()[1]["degraded"]:
                assert time.monotonic() < until, "a lease without end"
            return
        raise AssertionError("the proof ended in each of five rounds")
    finally:
        if worker.status is not None:
            worker.start()
        assert here.stop() == 0
        system.wait_ready()


def test_shutdown_settles_everything_and_the_log_has_every_admission(system: System) -> None:
    client = "last"
    system.gateways[0].set_limits(client, "100000/hour")
    counted = 0
    for gateway in system.gateways:
        warm(gateway, client)
        admitted, sent = load(gateway, client, 2.0)
        assert len(admitted) == sent
    for gateway in system.gateways:
        granted, used, expired = (
            gateway.metric(PERMITS.format(name)) for name in ("granted", "used", "expired")
        )
        assert granted >= used > 0
        assert expired < granted / 4
        counted += int(gateway.metric("stoplog_checks_allowed_total"))
    hits = {gateway.name: gateway.metric(HITS) for gateway in system.gateways}
    for gateway in system.gateways:
        assert gateway.stop() == 0
    assert all(hits.values())
    charged = settled = 0
    for partition in range(PARTITIONS):
        records = system.records(partition)
        answers = dict(replay(records, partition, PARTITIONS, DEFAULT))
        for record in records:
            content = decode_checks_record(record.value)
            if isinstance(content, Batch):
                for check, answer in zip(content.checks, answers[record.offset], strict=True):
                    if isinstance(answer, Decision) and answer.allowed:
                        charged += check.cost
                for row in content.hold_rows or ():
                    settled += sum(one.used for one in row.settlements)
            elif isinstance(content, SettlementBatch):
                rows = content.rows
                assert all(partition_of(row.client, PARTITIONS) == partition for row in rows)
                settled += sum(one.used for row in rows for one in row.settlements)
    # A settlement without a confirmation is repeated, so the reports may exceed the use.
    assert charged + settled >= counted
