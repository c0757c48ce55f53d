"""Denials from the deny cache of a gateway, while another gateway changes the limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from stoplog_worker.verify.replay import replay

from stoplog.client.deny_cache import MAX_HOLD_S
from stoplog.partitioning import partition_of
from stoplog.policy import parse_policy
from stoplog.wire.checks import Denials, Denied, decode_checks_record
from tests.support.broker import fresh_broker
from tests.support.system import Gateway, System, eventually, running_system
from tests.support.up import environment, stoplog

PARTITIONS = 4
HITS = "stoplog_deny_cache_hits_total"
STORES = "stoplog_deny_cache_stores_total"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Run one system for all tests. Each test has its own clients, and the last one stops the gateways."""
    folder = tmp_path_factory.mktemp("system")
    # A busy machine does not miss this deadline, so no check fails open.
    with fresh_broker() as broker, running_system(broker, folder, gateways=2, deadline_ms=20_000) as running:
        yield running


def flood(gateway: Gateway, client: str, **fields: Any) -> dict[str, Any]:
    """Send checks of *client* until the deny cache answers one; return that answer."""
    answers: list[dict[str, Any]] = []
    hits = gateway.metric(HITS)

    def denied() -> bool:
        answers.append(gateway.check(client, **fields))
        return gateway.metric(HITS) > hits

    eventually(f"the deny cache denies {client}", denied)
    return answers[-1]


def put(gateway: Gateway, path: str, *limits: str) -> None:
    response = gateway.http.put(path, json={"limits": list(limits)})
    assert (response.status_code, response.json()["applied"]) == (200, True)


def test_cached_denial_shows_the_values_of_the_first_denial(system: System) -> None:
    here = system.gateways[0]
    here.set_limits("shown", "2/hour")
    answer = flood(here, "shown")
    assert answer == {
        "allowed": False,
        "limit": 2,
        "remaining": 0,
        "reset_after_ms": answer["reset_after_ms"],
        "retry_after_ms": answer["reset_after_ms"],
        "policy_version": answer["policy_version"],
        "degraded": False,
        "reason": None,
    }
    assert 0 < answer["retry_after_ms"] <= 3_660_000
    assert answer["policy_version"] >= 0
    assert flood(here, "shown")["retry_after_ms"] <= answer["retry_after_ms"]


@pytest.mark.parametrize("writer", [0, 1], ids=["through the same gateway", "through another"])
def test_cached_denial_after_raised_limit_ends_at_once(system: System, writer: int) -> None:
    here, client = system.gateways[0], f"raised-{writer}"
    for limit in range(1, 6):
        system.gateways[writer].set_limits(client, f"{limit}/hour")
        assert here.check(client)["allowed"], limit
        assert not flood(here, client)["allowed"]


@pytest.mark.parametrize("writer", [0, 1], ids=["through the same gateway", "through another"])
def test_cached_denial_after_reset_ends_at_once(system: System, writer: int) -> None:
    here, client = system.gateways[0], f"reset-{writer}"
    here.set_limits(client, "1/hour")
    for _ in range(3):
        assert here.check(client)["allowed"]
        assert not flood(here, client)["allowed"]
        there = system.gateways[writer].http
        assert there.post(f"/v1/clients/{client}/reset").json()["applied"]


def test_cached_denial_after_plan_or_default_change_ends_at_once(system: System) -> None:
    here, there = system.gateways
    names = [f"planned-{number}" for number in range(40)]
    clients = {partition_of(name, PARTITIONS): name for name in names}.values()
    assert len(clients) == PARTITIONS
    put(there, "/v1/plans/deny-gold", "1/hour")
    for client in clients:
        assert not flood(here, client, plan="deny-gold")["allowed"]
        assert here.check(client)["allowed"], "the plan's denial must not apply without the plan"
    put(there, "/v1/plans/deny-gold", "3/hour")
    assert all(here.check(client, plan="deny-gold")["allowed"] for client in clients)
    put(there, "/v1/default", "1/hour")
    for client in clients:
        assert not flood(here, client)["allowed"]
    put(there, "/v1/default", "9/hour")
    assert all(here.check(client)["allowed"] for client in clients)
    assert there.http.delete("/v1/default").json()["applied"]


def test_cached_denial_for_smaller_cost_is_not_used(system: System) -> None:
    here = system.gateways[0]
    here.set_limits("small", "5/hour")
    assert here.check("small", cost=3)["allowed"]
    assert not flood(here, "small", cost=3)["allowed"]
    assert here.check("small", cost=1)["allowed"]
    assert here.check("small", cost=0)["remaining"] == 1
    assert not flood(here, "small", cost=2)["allowed"]
    assert here.check("small", cost=1)["allowed"]


def test_denials_are_soon_asked_again_where_another_gateway_settles_more_than_was_held(
    system: System,
) -> None:
    here, there = system.gateways
    here.set_limits("soon", "1/hour")
    names = (f"spender-{number}" for number in range(40))
    spender = next(
        name for name in names if partition_of(name, PARTITIONS) == partition_of("soon", PARTITIONS)
    )

    system.wait_reservations()
    id_ = there.http.post("/v1/reservations", json={"client_id": spender, "cost": 1}).json()["id"]
    settled = there.http.post(f"/v1/reservations/{id_}/settle", json={"used": 2}).json()
    assert settled["state"] == "settled"
    flood(here, "soon")
    stored = here.metric(STORES)

    def asked_again() -> bool:
        assert not here.check("soon")["allowed"]
        return here.metric(STORES) > stored

    began = monotonic()
    eventually("the log denies again", asked_again)
    assert monotonic() - began < MAX_HOLD_S / 2, "the worker's heartbeat did not matter"


def test_cached_denials_are_logged_and_change_no_decision(system: System, tmp_path: Path) -> None:
    default = parse_policy("100/minute")
    env = environment(tmp_path, STOPLOG_KAFKA=system.broker.bootstrap)
    for gateway in system.gateways:
        gateway.set_limits(f"last-{gateway.name}", "1/hour")
        flood(gateway, f"last-{gateway.name}")
    hits = sum(gateway.metric(HITS) for gateway in system.gateways)
    assert hits > 20
    for gateway in system.gateways:
        assert gateway.metric("stoplog_checks_rejected_total") >= gateway.metric(HITS)
        assert gateway.metric("stoplog_checks_degraded_total") == 0
        assert gateway.stop() == 0
    sums: list[Denied] = []
    for partition in range(PARTITIONS):
        records = system.records(partition)
        contents = {record.offset: decode_checks_record(record.value) for record in records}
        denials = {o: content for o, content in contents.items() if isinstance(content, Denials)}
        for content in denials.values():
            sums += content.sums
            assert all(partition_of(row.client, PARTITIONS) == partition for row in content.sums)
        folded = dict(replay(records, partition, PARTITIONS, default))
        assert not any(folded[offset] for offset in denials)
    assert sum(row.checks for row in sums) == hits
    assert {row.client for row in sums} >= {"last-gateway-1", "last-gateway-2", "small"}
    assert all(2 <= row.cost / row.checks <= 3 for row in sums if row.client == "small")
    done = stoplog("verify", "--seconds", "0", env=env)
    assert done.returncode in (0, 3), done.stdout  # 3: the last checkpoint had everything
    [worker] = system.workers
    assert worker.stop() == 0
    assert not worker.lines("dead")
