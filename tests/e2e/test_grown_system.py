"""A system whose partitions have grown from two to four: everything works, for all clients."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, Final

import pytest
from confluent_kafka import OFFSET_BEGINNING, TopicPartition
from stoplog_worker.growth.grow import grow
from stoplog_worker.settings import Settings

from stoplog import Limiter
from stoplog.partitioning import partition_of
from stoplog.topics import DEAD_LETTERS, REPLIES
from stoplog.wire.limit_updates import UpdateKey
from tests.support.broker import topics_file
from tests.support.meanwhile import meanwhile
from tests.support.other_producer import OtherProducer, count_records, dead_letters, read
from tests.support.relay import OLD
from tests.support.secure_kafka import secure_kafka
from tests.support.system import Gateway, System, eventually
from tests.support.up import environment, stoplog

BEFORE: Final = 2
AFTER: Final = 4
LEASE_HITS: Final = "stoplog_lease_hits_total"
DENY_HITS: Final = "stoplog_deny_cache_hits_total"
HOLDERS: Final = ("settled", "returned", "kept")
"""Clients with reservations."""
TICK_MS: Final = 60_000
"""Granularity of a window of an hour."""


def one(name: str, *, moved: bool) -> str:
    """Return a client called *name*, whose partition is another one after growing if it is *moved*."""
    return next(
        client
        for client in (f"{name}-{number}" for number in range(1_000))
        if (partition_of(client, AFTER) != partition_of(client, BEFORE)) == moved
    )


both = pytest.mark.parametrize("moved", [True, False], ids=["moved", "stayed"])


@dataclass
class Grown:
    """A system that has grown, and what was done before.

    Attributes:
        system: The system. Its second worker, and a third gateway, were frozen while the partitions grew.
        frozen: That gateway, which is in no list.
        exact: A gateway without leases, which is in no list either. What remains is exact there.
        env: The environment of commands.
        producer: A producer that has been running all the time.
        admitted: Checks of hot clients that were allowed.
        spent: What the clients with a limit of 1,000 have spent.
        ids: Ids of reservations, by client.
        denials: When each denied client was denied, by :func:`time.monotonic`, and the answer.
        report: What the command has printed.
    """

    system: System
    frozen: Gateway
    exact: Gateway
    env: dict[str, str]
    producer: OtherProducer
    admitted: dict[str, int] = field(default_factory=dict)
    spent: dict[str, int] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    denials: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def gateway(self) -> Gateway:
        """Return one gateway."""
        return self.system.gateways[0]

    def spend(self) -> None:
        """Check every client whose spending is known, and compare what remains."""
        for client, spent in self.spent.items():
            answer = self.exact.check(client)
            assert (answer["degraded"], answer["limit"]) == (False, 1_000), answer
            assert answer["remaining"] == 1_000 - spent - 1, client
            self.spent[client] += 1

    def use_up(self, client: str, most: int) -> None:
        """Send checks of a hot client to both gateways, until *most* are allowed or it is denied."""
        for gateway in self.system.gateways:
            for _ in range(most // 2):
                answer = gateway.check(client)
                assert not answer["degraded"], answer
                self.admitted[client] = self.admitted.get(client, 0) + answer["allowed"]


def post(gateway: Gateway, path: str, **body: Any) -> dict[str, Any]:
    """Send a POST request that succeeds; return the answer."""
    response = gateway.http.post(path, json=body or None)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def put(gateway: Gateway, path: str, *limits: str) -> None:
    """Set the limits at *path*."""
    response = gateway.http.put(path, json={"limits": list(limits)})
    assert response.status_code == 200, response.text
    assert response.json()["applied"]


def used(grown: Grown, client: str, **params: str) -> int:
    """Return what a client has used of its only limit."""
    response = grown.gateway.http.get(f"/v1/clients/{client}/usage", params=params)
    assert response.status_code == 200, response.text
    [window] = response.json()["windows"]
    return int(window["used"])


def at_once(*calls: Callable[[], object]) -> None:
    """Make independent *calls* at the same time: a change of limits waits most of its time."""
    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(call) for call in calls]:
            future.result()


def limits(grown: Grown, *, moved: bool) -> None:
    """Set limits, and delete some."""
    here = grown.gateway
    here.set_limits(one("limited", moved=moved), "50/hour")
    here.set_limits(one("deleted", moved=moved), "50/hour")
    assert here.http.delete(f"/v1/limits/{one('deleted', moved=moved)}").json()["existed"]
    grown.system.gateways[1].check(one("limited", moved=moved), cost=40)


def resets_and_charges(grown: Grown, *, moved: bool) -> None:
    """Charge clients by the default, a resource and a plan; reset one of them."""
    here, there = grown.system.gateways
    for name in ("default", "reset", "reset-later", "resource"):
        there.check(one(name, moved=moved), cost=40)
    here.check(one("resource", moved=moved), cost=7, resource="login")
    there.check(one("planned", moved=moved), cost=40, plan="gold")
    assert post(here, f"/v1/clients/{one('reset', moved=moved)}/reset")["existed"]
    there.check(one("reset", moved=moved))


def denial(grown: Grown, *, moved: bool) -> None:
    """Use up the limit of a client."""
    here, denied = grown.gateway, one("denied", moved=moved)
    here.set_limits(denied, "5/hour")
    here.check(denied, cost=5)
    grown.denials[denied] = monotonic(), here.check(denied)


def reservation(grown: Grown, *, moved: bool, name: str) -> None:
    """Open a reservation."""
    here, client = grown.gateway, one(name, moved=moved)
    here.set_limits(client, "100/hour", "2 in flight")
    answer = post(here, "/v1/reservations", client_id=client, cost=60, ttl_ms=3_600_000)
    assert (answer["allowed"], answer["held"]) == (True, 60), answer
    grown.ids[client] = answer["id"]


def hot(grown: Grown, *, moved: bool) -> None:
    """Have a client use leases of both gateways."""
    client = one("hot", moved=moved)
    grown.gateway.set_limits(client, "600/hour")
    grown.use_up(client, 200)


def prepare(grown: Grown) -> None:
    """Do everything whose effect is looked at after growing."""
    here = grown.gateway
    put(here, "/v1/default", "200/hour")
    put(here, "/v1/plans/gold", "300/hour")
    known = [f"known-{number}" for number in range(12)]
    grown.spent = dict.fromkeys(known, 0)
    at_once(*(partial(here.set_limits, client, "1000/hour") for client in known))
    grown.spend()
    grown.producer.check("a-client")

    # These have old data, and the old number, when they go on.
    for process in (grown.system.workers[1], grown.frozen):
        process.signal(signal.SIGSTOP)
    grown.spend()
    grown.system.wait_reservations()

    steps: list[Callable[..., None]] = [limits, resets_and_charges, denial, hot]
    steps += [partial(reservation, name=name) for name in HOLDERS]
    at_once(*(partial(step, grown, moved=moved) for step in steps for moved in (True, False)))
    assert all(gateway.metric(LEASE_HITS) for gateway in grown.system.gateways), "no lease was used"


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grown]:
    """Run a system whose partitions have grown, by the command with the rights of its role."""
    folder = tmp_path_factory.mktemp("system")
    topics = topics_file(folder / "topics.yaml", BEFORE)
    with secure_kafka("stoplog-grower", topics=False) as kafka, ExitStack() as stack:
        broker = kafka.broker
        env = environment(
            folder, STOPLOG_KAFKA=broker.bootstrap, STOPLOG_TOPICS=str(topics), STOPLOG_RELAY_KEYS=OLD
        )
        assert stoplog("topics", "create", env=env).returncode == 0
        kafka.grant(stoplog("topics", "acls", "--role", "grower", env=env).stdout)
        rights = {f"STOPLOG_{name.upper()}": value for name, value in kafka.scram("stoplog-grower").items()}
        # A busy machine does not miss this deadline. A check waits for it while a worker takes over.
        system = System(broker, folder, stack, topics=topics, deadline_ms=30_000, apply_timeout_ms=30_000)
        system.worker_settings = {"relay_keys": OLD}
        for _ in range(2):
            system.add_worker()
            system.add_gateway()
        frozen, exact = system.add_gateway(deadline_ms=1_000), system.add_gateway(lease_max_ms=0)
        system.wait_ready()
        for gateway in (frozen, exact):
            system.gateways.remove(gateway)
        settings = {"topic.metadata.refresh.interval.ms": 1_000}
        grown = Grown(system, frozen, exact, env, OtherProducer(broker.bootstrap, **settings))
        prepare(grown)
        at_once(*(gateway.stop for gateway in (*system.gateways, exact)))
        assert system.workers[0].stop() == 0
        for moved in (True, False):
            client = one("waiting", moved=moved)
            grown.producer.update(UpdateKey("client", client), ["30/hour"], partition_of(client, BEFORE))
        done = stoplog("topics", "grow", str(AFTER), "--json", env=env | rights)
        assert done.returncode == 0, done.stderr
        grown.report = json.loads(done.stdout)
        for process in (system.workers[0], *system.gateways, exact):
            process.start()
        system.wait_ready()
        eventually("the gateway without leases is ready", exact.ready)
        yield grown


def test_command_reports_what_it_copied(grown: Grown) -> None:
    assert (grown.report["before"], grown.report["after"], grown.report["lanes"]) == (BEFORE, AFTER, 1)
    assert grown.report["states"] > 10
    settings = Settings(kafka=grown.system.bootstrap, topics=Path(grown.env["STOPLOG_TOPICS"]))
    again = grow(settings, AFTER, lambda *_: None)
    assert (again.before.partitions, again.states, again.limits) == (AFTER, 0, 0)


def test_counts_continue(grown: Grown) -> None:
    grown.spend()


@both
def test_own_limits_stay_and_can_be_changed_and_deleted(grown: Grown, moved: bool) -> None:
    client, gateway = one("limited", moved=moved), grown.gateway
    assert gateway.http.get(f"/v1/limits/{client}").json()["limits"] == ["50/hour"]
    answer = gateway.check(client)
    assert (answer["limit"], answer["remaining"]) == (50, 9)
    gateway.set_limits(client, "60/hour")
    answer = gateway.check(client)
    assert (answer["limit"], answer["remaining"]) == (60, 18)
    change = gateway.http.get(f"/v1/limits/{client}/history").json()["items"][0]
    assert (change["limits"], change["previous_limits"]) == (["60/hour"], ["50/hour"])
    assert gateway.http.delete(f"/v1/limits/{client}").json()["existed"]
    assert gateway.check(client, cost=0, plan="gold")["limit"] == 300
    assert gateway.http.get(f"/v1/limits/{client}").status_code == 404
    deleted = one("deleted", moved=moved)
    assert gateway.http.get(f"/v1/limits/{deleted}").status_code == 404
    assert gateway.http.delete(f"/v1/limits/{deleted}").json()["existed"] is False


@both
def test_charges_of_a_resource_stay(grown: Grown, moved: bool) -> None:
    client = one("resource", moved=moved)
    assert (used(grown, client), used(grown, client, resource="login")) == (40, 7)


@both
def test_update_that_no_worker_had_read_applies(grown: Grown, moved: bool) -> None:
    client, gateway = one("waiting", moved=moved), grown.gateway
    eventually("it applies", lambda: gateway.check(client, cost=0)["limit"] == 30)
    assert gateway.http.get(f"/v1/limits/{client}").json()["limits"] == ["30/hour"]


def test_plan_stays_and_changes_in_all_partitions(grown: Grown) -> None:
    here, there = grown.system.gateways
    clients = [f"gold-{number}" for number in range(16)]
    assert {partition_of(client, AFTER) for client in clients} == set(range(AFTER))
    for moved in (True, False):
        answer = here.check(one("planned", moved=moved), plan="gold")
        assert (answer["limit"], answer["remaining"]) == (300, 259)
    assert {here.check(client, plan="gold")["limit"] for client in clients} == {300}
    put(here, "/v1/plans/gold", "400/hour")
    assert {there.check(client, plan="gold")["remaining"] for client in clients} == {398}


@both
def test_reset_from_before_stays_and_a_new_one_works(grown: Grown, moved: bool) -> None:
    gateway = grown.gateway
    client, later = one("reset", moved=moved), one("reset-later", moved=moved)
    assert used(grown, client) == 1
    gateway.check(later, cost=5)
    assert post(gateway, f"/v1/clients/{later}/reset")["existed"]
    assert used(grown, later) == 0


def test_default_stays_and_changes_in_all_partitions(grown: Grown) -> None:
    """At the end, a minute is the only window of clients without limits: earlier charges may have left it."""
    here, there = grown.system.gateways
    clients = [one("default", moved=moved) for moved in (True, False)]
    assert [here.check(client)["remaining"] for client in clients] == [159, 159]
    others = [f"other-{number}" for number in range(16)]
    put(there, "/v1/default", "150/hour")
    assert {here.check(client)["limit"] for client in [*clients, *others]} == {150}
    assert here.http.delete("/v1/default").json()["applied"]
    assert {there.check(client)["limit"] for client in [*clients, *others]} == {100}


@both
def test_denial_continues_and_the_deny_cache_shows_it_until_a_reset(grown: Grown, moved: bool) -> None:
    client, gateway = one("denied", moved=moved), grown.gateway
    began, before = grown.denials[client]
    after = gateway.check(client)
    passed_ms = (monotonic() - began) * 1_000
    assert (after["allowed"], after["limit"], after["remaining"]) == (False, 5, 0)
    assert abs(before["retry_after_ms"] - passed_ms - after["retry_after_ms"]) < 1_000
    hits = gateway.metric(DENY_HITS)

    def cached() -> bool:
        answer = gateway.check(client)
        assert (answer["allowed"], answer["remaining"]) == (False, 0)
        assert 0 < answer["retry_after_ms"] <= after["retry_after_ms"]
        return gateway.metric(DENY_HITS) > hits

    eventually("the deny cache answers", cached)
    assert post(grown.system.gateways[1], f"/v1/clients/{client}/reset")["applied"]
    assert gateway.check(client)["allowed"]


@both
def test_hot_client_of_two_gateways_gets_exactly_its_limit(grown: Grown, moved: bool) -> None:
    hot = one("hot", moved=moved)
    assert 100 <= grown.admitted[hot] <= 200
    hits = sum(gateway.metric(LEASE_HITS) for gateway in grown.system.gateways)

    def used_up() -> bool:
        grown.use_up(hot, 100)
        assert grown.admitted[hot] <= 600
        return grown.admitted[hot] == 600

    eventually("all is used", used_up, on_failure=lambda: str(grown.admitted))
    assert sum(gateway.metric(LEASE_HITS) for gateway in grown.system.gateways) > hits, "no lease was used"
    grown.use_up(hot, 20)
    assert grown.admitted[hot] == 600


@both
def test_reservations_from_before_are_held_and_can_be_settled_or_returned(grown: Grown, moved: bool) -> None:
    here, there = grown.system.gateways
    settled, returned, kept = (one(name, moved=moved) for name in HOLDERS)
    for client in (settled, returned, kept):
        assert here.check(client, cost=0)["remaining"] == 40
        assert not here.check(client, cost=41)["allowed"]
    answer = post(there, f"/v1/reservations/{grown.ids[settled]}/settle", used=25)
    assert (answer["state"], answer["used"], answer["repeated"]) == ("settled", 25, False)
    assert here.check(settled, cost=0)["remaining"] == 75
    assert post(here, f"/v1/reservations/{grown.ids[settled]}/settle", used=1)["repeated"]
    assert here.check(settled, cost=0)["remaining"] == 75
    response = there.http.delete(f"/v1/reservations/{grown.ids[returned]}")
    assert (response.status_code, response.json()["used"]) == (200, 0)
    assert here.check(returned, cost=0)["remaining"] == 100
    second = post(there, "/v1/reservations", client_id=kept, cost=10)
    assert second["allowed"]
    third = post(here, "/v1/reservations", client_id=kept, cost=10)
    assert not third["allowed"]
    assert third["detail"].startswith("2 reservations are open")


@both
def test_producer_that_hashes_over_the_metadata_is_answered(grown: Grown, moved: bool) -> None:
    client = one("published", moved=moved)
    newcomer = OtherProducer(grown.system.bootstrap)
    for number, producer in enumerate((grown.producer, newcomer), 1):
        id_ = f"{client}-{number}"
        partition, _ = producer.check(client, cost=2, reply_to={"partition": 1, "id": id_})
        assert partition == partition_of(client, AFTER)
        assert reply(grown.system.bootstrap, id_)["allowed"]
        assert used(grown, client) == 2 * number


def reply(bootstrap: str, id_: str) -> dict[str, Any]:
    """Return the reply with *id_*."""
    for message in read(bootstrap, TopicPartition(REPLIES, 1, OFFSET_BEGINNING)):
        value = message.value() or b""
        if value.startswith(b"{") and (found := json.loads(value))["id"] == id_:
            return dict(found)
    raise AssertionError


def test_only_records_of_producers_with_the_old_number_become_dead_letters(grown: Grown) -> None:
    moved, stayed = (one("fixed", moved=moved) for moved in (True, False))
    right, wrong = partition_of(moved, AFTER), partition_of(moved, BEFORE)
    grown.producer.check(stayed, partition=partition_of(stayed, BEFORE), cost=9)
    checked = grown.producer.check(moved, partition=wrong, cost=9)
    updated = grown.producer.update(UpdateKey("client", moved), ["7/hour"], wrong)
    letters = dict(islice(dead_letters(grown.system.bootstrap), 2))
    assert letters.keys() == {checked, updated}
    assert letters[checked].reason.startswith(
        f"client {moved!r} belongs to partition {right} and was sent to {wrong}: hash client ids"
    )
    assert letters[updated].reason.startswith(
        f"client {moved!r} belongs to partition {right}, but its update is in partition {wrong}: choose"
    )
    assert all("over 4 partitions" in letter.reason for letter in letters.values())
    assert (used(grown, moved), used(grown, stayed)) == (0, 9)
    assert grown.gateway.check(moved, cost=0)["limit"] != 7


async def test_sdk_with_the_old_topics_file_checks_both_kinds_of_clients(grown: Grown) -> None:
    async with Limiter(grown.system.bootstrap, topics=grown.env["STOPLOG_TOPICS"], deadline_ms=30_000) as sdk:
        for moved in (True, False):
            client = one("sdk", moved=moved)
            grown.gateway.check(client, cost=5)
            assert not (await sdk.check(client)).degraded
            assert used(grown, client) == 6


def test_topics_verify_states_the_number_to_which_the_log_has_grown(grown: Grown) -> None:
    done = stoplog("topics", "verify", env=grown.env)
    assert (done.returncode, done.stderr) == (0, "")
    used, agreement = done.stdout.splitlines()
    assert used == "8 topics can be used: 4 partitions of checks"
    assert agreement == f"they agree with {grown.env['STOPLOG_TOPICS']}: its 2 partitions have grown to 4"
    other = topics_file(Path(grown.env["STOPLOG_HOME"], "other.yaml"), 8)
    done = stoplog("topics", "verify", env={**grown.env, "STOPLOG_TOPICS": str(other)})
    assert done.stdout.splitlines()[1] == (
        "clients are hashed over the 4 partitions to which the log has grown, although topics.yaml requires "
        "8. Set partitions: 4 for these topics in topics.yaml"
    )


def test_worker_that_was_frozen_takes_over_from_one_that_was_killed(grown: Grown) -> None:
    system = grown.system
    first, second = system.workers
    grown.spend()
    second.signal(signal.SIGCONT)
    await_owners(grown, second.name, 2)
    grown.spend()
    first.kill()
    grown.spend()
    await_owners(grown, second.name, 4)

    # The other worker loses its disk.
    shutil.rmtree(first.tables)
    first.start()
    await_owners(grown, first.name, 2)
    assert second.stop() == 0
    grown.spend()


def await_owners(grown: Grown, worker: str, partitions: int) -> None:
    """Return once *worker* decides the checks of so many partitions."""

    def owns() -> bool:
        return any(
            node["id"].startswith(worker)
            and sum(one["state"] == "running" for one in node["partitions"].values()) == partitions
            for node in grown.gateway.report()["nodes"]
        )

    eventually(f"{worker} decides {partitions} partitions", owns, on_failure=grown.system.logs)


def test_verify_agrees(grown: Grown) -> None:
    with meanwhile(lambda _: grown.spend()):
        done = stoplog("verify", "--seconds", "2", "--json", env=grown.env)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert [partition["decisions"] > 0 for partition in found["partitions"]] == [True] * AFTER


def test_nothing_failed_open_was_lost_or_logged_as_an_error(grown: Grown) -> None:
    system = grown.system
    # A worker that takes over may write a letter again.
    letters = islice(dead_letters(system.bootstrap), count_records(system.bootstrap, DEAD_LETTERS))
    assert len(dict(letters)) == 2, "those of the producer with the old number"
    for process in system.processes:
        errors = process.lines("ERROR") + process.lines("CRITICAL")
        # A thread was frozen.
        assert not [line for line in errors if "keepalive is not responding" not in line]
    assert not any(gateway.metric("stoplog_checks_degraded_total") for gateway in system.gateways)


def test_gateway_that_was_frozen_goes_on_with_the_new_number(grown: Grown) -> None:
    """What it sends to an old partition before it has learned the number is refused or fails open."""
    gateway, clients = grown.frozen, [one("thawed", moved=moved) for moved in (True, False)]
    gateway.signal(signal.SIGCONT)

    def answered() -> bool:
        responses = [gateway.http.post("/v1/check", json={"client_id": client}) for client in clients]
        assert all(one.status_code == 200 for one in responses), "nothing is wrong with the checks"
        return not any(one.json()["degraded"] for one in responses)

    eventually("it is answered", answered)
    for client, spent in grown.spent.items():
        usage = gateway.http.get(f"/v1/clients/{client}/usage").json()
        assert [window["used"] for window in usage["windows"]] == [spent], client
    assert gateway.report()["store"] == "ok"
    assert gateway.status is None
