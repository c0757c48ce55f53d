"""The guarantees of Stoplog, with real processes and a real broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from stoplog.partitioning import partition_of
from tests.support.broker import fresh_broker
from tests.support.system import Gateway, System, eventually, running_system

PARTITIONS = 4
DEADLINE_MS = 1_000
"""A slow machine does not miss it by itself."""
FAST_S = DEADLINE_MS / 2_000
"""A check that fails open because of an open circuit breaker does not wait for the deadline."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Run one system for all tests. Each test has its own client, and leaves all processes running.

    The first gateway sends every check to the log: most tests are about what the log counts. The second one
    has leases, as by default.
    """
    folder = tmp_path_factory.mktemp("system")
    with (
        fresh_broker() as broker,
        running_system(broker, folder, deadline_ms=DEADLINE_MS, lease_max_ms=0) as running,
    ):
        running.add_gateway(deadline_ms=DEADLINE_MS)
        running.wait_ready()
        [worker] = running.workers
        eventually(
            "holds are enabled",
            lambda: len(worker.lines("grants holds")) == PARTITIONS,
            on_failure=running.logs,
        )
        yield running


def peek(gateway: Gateway, client: str) -> dict[str, Any]:
    """Return the store's answer to a check of cost 0. Repeat the check until it does not fail open."""
    answers: list[dict[str, Any]] = []

    def decided() -> bool:
        answers.append(gateway.check(client, cost=0))
        return not answers[-1]["degraded"]

    eventually(f"a decision on {client}", decided)
    return answers[-1]


async def check_at_once(urls: list[str], client: str, callers: int, each: int) -> list[dict[str, Any]]:
    """Send *each* checks from each of *callers* concurrent callers, to *urls* in turn."""

    async def caller(number: int) -> list[dict[str, Any]]:
        async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
            answers = []
            for turn in range(each):
                url = urls[(number + turn) % len(urls)]
                response = await http.post(f"{url}/v1/check", json={"client_id": client})
                answers.append(response.json())
            return answers

    results = await asyncio.gather(*(caller(number) for number in range(callers)))
    return [answer for answers in results for answer in answers]


def judges(node: dict[str, Any]) -> bool:
    """Return whether *node* is the active worker of any partition."""
    return any(partition["state"] == "running" for partition in node["partitions"].values())


def test_two_gateways_and_two_workers_enforce_one_limit(tmp_path: Path) -> None:
    with (
        fresh_broker() as broker,
        # A busy machine does not miss this deadline, so no check fails open. All admissions are in the log,
        # as checks. (test_leases.py compares leases with the log.)
        running_system(broker, tmp_path, workers=2, gateways=2, deadline_ms=10_000, lease_max_ms=0) as system,
    ):
        both = [gateway.url for gateway in system.gateways]
        eventually(
            "both workers judge partitions",
            lambda: sum(map(judges, system.gateways[0].report()["nodes"])) == 2,
            on_failure=system.logs,
        )
        answers = asyncio.run(check_at_once(both, "shared", callers=64, each=4))
        assert not any(answer["degraded"] for answer in answers)
        assert sum(answer["allowed"] for answer in answers) == 100
        assert system.admitted("shared", partition_of("shared", PARTITIONS)) == 100


@pytest.mark.parametrize("leases", [0, 1], ids=["without leases", "with leases"])
def test_limit_changed_under_load_takes_effect_in_log_order(system: System, leases: int) -> None:
    gateway, client = system.gateways[leases], f"mover-{leases}"
    first = gateway.set_limits(client, "100000/hour")["policy_version"]
    gateway.check(client)
    hits = gateway.metric("stoplog_lease_hits_total")

    async def load_and_change() -> tuple[list[dict[str, Any]], int]:
        decided: list[dict[str, Any]] = []
        loaded, changed = asyncio.Event(), asyncio.Event()

        async def caller() -> None:
            more = 5  # checks of each caller after the change
            async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
                while more:
                    response = await http.post(f"{gateway.url}/v1/check", json={"client_id": client})
                    if not (answer := response.json())["degraded"]:
                        decided.append(answer)
                        more -= changed.is_set()
                    if len(decided) == (64, 2_000)[leases]:
                        loaded.set()

        async with asyncio.TaskGroup() as callers:
            for _ in range(16):
                callers.create_task(caller())
            await loaded.wait()
            async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
                body = {"limits": ["1/hour"]}
                answer = await http.put(f"{gateway.url}/v1/limits/{client}", json=body)
            assert answer.status_code == 200, answer.text
            changed.set()
        return decided, answer.json()["policy_version"]

    decided, second = asyncio.run(load_and_change())
    assert {answer["policy_version"] for answer in decided} == {first, second}
    for answer in decided:
        # The client had spent one before, so the new policy denies every check.
        assert answer["allowed"] == (answer["policy_version"] == first)
    log = system.decisions(client, partition_of(client, PARTITIONS))
    versions = [decision.policy_version for _, decision in log]
    assert versions == sorted(versions)
    assert set(versions) == {first, second}
    # Most denials under the second policy come from the deny cache, so they are not in the log. Neither are
    # the checks that permits of a lease allow.
    hits = int(gateway.metric("stoplog_lease_hits_total") - hits)
    assert bool(hits) == bool(leases)
    assert versions.count(first) + hits > sum(answer["policy_version"] == first for answer in decided)
    # The change was confirmed, so the next check is decided under it.
    assert peek(gateway, client)["policy_version"] == second


def test_worker_stopped_fails_open_and_counts_later(system: System) -> None:
    gateway, worker = system.gateways[0], system.workers[0]
    began, ended = gateway.degraded_spells()
    gateway.set_limits("patient", "50/hour")
    for _ in range(3):
        assert not gateway.check("patient")["degraded"]

    assert worker.stop() == 0
    for _ in range(3):
        assert gateway.check("patient")["degraded"]
    took = []
    for _ in range(10):
        sent_at = time.perf_counter()
        answer = gateway.check("patient")
        took.append(time.perf_counter() - sent_at)
        assert answer["allowed"]
        assert answer["reason"] == "breaker_open"
    assert sorted(took)[len(took) // 2] < FAST_S
    assert gateway.report()["mode"] == "degraded"

    worker.start()
    eventually("normal again", lambda: gateway.report()["mode"] == "normal", on_failure=system.logs)
    assert peek(gateway, "patient")["remaining"] == 50 - 3 - 13
    assert gateway.degraded_spells() == (began + 1, ended + 1)


def test_broker_stopped_fails_open_and_reports_uncounted(system: System) -> None:
    gateway, broker = system.gateways[0], system.broker
    began, ended = gateway.degraded_spells()
    lost_before = int(gateway.metric("stoplog_checks_uncounted_total"))
    gateway.set_limits("stoic", "100000/hour")
    spent = 5
    for _ in range(spent):
        assert not gateway.check("stoic")["degraded"]

    broker.stop()
    took: list[float] = []

    def loss_is_reported() -> bool:
        nonlocal spent
        sent_at = time.perf_counter()
        answer = gateway.check("stoic")
        took.append(time.perf_counter() - sent_at)
        assert answer["allowed"]
        assert answer["degraded"]
        spent += 1
        return len(took) >= 20 and gateway.metric("stoplog_checks_uncounted_total") > lost_before

    eventually("unpublished checks are reported", loss_is_reported, on_failure=system.logs)
    assert sorted(took)[len(took) // 2] < FAST_S

    broker.start()
    eventually("normal again", lambda: gateway.report()["mode"] == "normal", on_failure=system.logs)
    system.wait_ready()
    uncounted = int(gateway.metric("stoplog_checks_uncounted_total")) - lost_before
    before = peek(gateway, "stoic")
    # "At most": the broker may have stored checks that it did not acknowledge. They are counted.
    assert spent - uncounted <= 100_000 - before["remaining"] <= spent
    for _ in range(7):  # each is counted, whether or not its answer comes in time
        gateway.check("stoic")
    assert peek(gateway, "stoic")["remaining"] == before["remaining"] - 7
    assert gateway.degraded_spells() == (began + 1, ended + 1)
    last = gateway.lines("WARNING", "normal again")[-1]
    assert f"{uncounted:,} could not be published" in last


def test_worker_killed_and_restarted_counts_every_check_once(system: System) -> None:
    gateway, worker = system.gateways[0], system.workers[0]
    gateway.set_limits("survivor", "100000/hour")
    sent = 0
    for _ in range(2):
        for _ in range(40):
            gateway.check("survivor")
            sent += 1
        worker.kill()
        for _ in range(5):
            gateway.check("survivor")
            sent += 1
        worker.start()
        peek(gateway, "survivor")
    assert peek(gateway, "survivor")["remaining"] == 100_000 - sent
    assert system.admitted("survivor", partition_of("survivor", PARTITIONS)) == sent


@pytest.mark.parametrize("leases", [0, 1], ids=["without leases", "with leases"])
def test_windows_changed_and_back_never_admit_above_limit(system: System, leases: int) -> None:
    gateway, client = system.gateways[leases], f"shifty-{leases}"

    def spend(most: int) -> int:
        return sum(gateway.check(client)["allowed"] for _ in range(most))

    gateway.set_limits(client, "20/minute")
    assert spend(25) == 20
    gateway.set_limits(client, "50/hour")
    assert spend(55) == 30
    gateway.set_limits(client, "20/minute")
    assert spend(5) == 0
    gateway.set_limits(client, "50/hour")
    assert spend(5) == 0
    gateway.set_limits(client, "60/hour", "55/minute")
    assert spend(20) == 5
