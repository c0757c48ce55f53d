"""An upgrade from release 0.2.0 under load: gateways and workers of both releases, and the log as oracle."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, Final

import httpx
import msgspec
from confluent_kafka import Producer
from stoplog_worker.algorithm.state_codec import MARKER_KEY
from stoplog_worker.verify.replay import replay
from stoplog_worker.worker import EXIT_CONFIG

from stoplog import __version__
from stoplog.partitioning import partition_of
from stoplog.policy import parse_policy
from stoplog.topics import POLICIES_CHANGELOG
from stoplog.wire.checks import POSITION_BITS, Batch, SingleCheck, decode_checks_record
from stoplog.wire.replies import Decision
from tests.support.broker import fresh_broker
from tests.support.old_release import OldRelease
from tests.support.system import Gateway, Process, System, eventually

OLD: Final = "0.2.0"
PARTITIONS: Final = 4
DEFAULT: Final = parse_policy("100/minute")

CLIENTS: Final = [f"client-{number}" for number in range(16)]
"""Each is checked by one caller, so that its checks and their answers have one order."""

PACE_S: Final = 0.01
"""Seconds between two checks of a caller: the oracle decides each of them again, on a busy machine."""

NEWER_MARKER: Final = b"\x03" + (5 << POSITION_BITS).to_bytes(8) + msgspec.msgpack.encode([5, {}])


@contextmanager
def load(gateways: list[Gateway], answers: dict[str, list[Any]]) -> Iterator[None]:
    """Check the clients through *gateways*, which may change meanwhile; collect each client's answers."""
    stop = Event()

    def call(clients: list[str]) -> None:
        with httpx.Client(timeout=60, trust_env=False) as http:
            turn = 0
            while not stop.wait(PACE_S):
                turn += 1
                client, gateway = clients[turn % len(clients)], gateways[turn // len(clients) % len(gateways)]
                response = http.post(f"{gateway.url}/v1/check", json={"client_id": client})
                answers[client].append(response.raise_for_status().json())

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call, CLIENTS[number::4]) for number in range(4)]
        try:
            yield
        finally:
            stop.set()
    for each in calls:
        each.result()


def judging(worker: Process) -> bool:
    """Return whether a worker has taken over a partition."""
    return bool(worker.lines("judging from"))


def versions(gateway: Gateway, role: str) -> set[str]:
    """Return the releases of the live nodes of a role."""
    return {node["version"] for node in gateway.report()["nodes"] if node["role"] == role}


def decided(system: System) -> dict[str, list[tuple[bool, int | None]]]:
    """Return for each client what the log decided, in its order."""
    found: dict[str, list[tuple[bool, int | None]]] = {client: [] for client in CLIENTS}
    for partition in range(PARTITIONS):
        records = system.records(partition)
        answers = dict(replay(records, partition, PARTITIONS, DEFAULT))
        for record in records:
            content = decode_checks_record(record.value)
            if isinstance(content, Batch | SingleCheck):
                for check, answer in zip(content.checks, answers[record.offset], strict=True):
                    if check.client in found and isinstance(answer, Decision):
                        found[check.client].append((answer.allowed, answer.remaining))
    return found


def test_upgrade_under_load_in_both_orders_decides_as_the_log(tmp_path: Path) -> None:
    release = OldRelease(OLD, tmp_path / "release")
    answers: dict[str, list[Any]] = {client: [] for client in CLIENTS}
    with fresh_broker() as broker, ExitStack() as stack:
        # A busy machine does not miss this deadline, so no check fails open while a worker lives.
        system = System(broker, tmp_path, stack, deadline_ms=20_000, apply_timeout_ms=25_000, lease_max_ms=0)
        workers: list[Process] = [system.add_worker(env=release.env) for _ in range(2)]
        old = system.add_gateway(env=release.env)
        new = system.add_gateway()
        system.wait_ready()
        eventually("all workers are known", lambda: versions(new, "worker") == {OLD}, on_failure=system.logs)
        assert versions(new, "gateway") == {OLD, __version__}
        assert {partition_of(client, PARTITIONS) for client in CLIENTS} == set(range(PARTITIONS))
        gateways = [old, new]

        def pass_by(checks: int) -> None:
            """Wait until each client has got that many more answers."""
            wanted = {client: len(got) + checks for client, got in answers.items()}
            eventually(
                "the load goes on",
                lambda: all(len(answers[client]) >= number for client, number in wanted.items()),
                on_failure=system.logs,
            )

        def change_limits(at: Gateway, first: int) -> None:
            """Change limits of the default's window: about others, the releases do not agree."""
            for client in CLIENTS[first::4]:
                assert at.set_limits(client, f"{150 + 150 * first}/minute")["applied"]

        with load(gateways, answers):
            # Old workers, with old and new gateways.
            change_limits(old, 0)
            change_limits(new, 1)
            refused = new.http.post("/v1/reservations", json={"client_id": "newer"})
            assert refused.status_code == 409
            for worker in workers:
                assert f"worker {worker.name}@" in refused.json()["remedy"]
            limits = {"limits": ["3 in flight"]}
            assert new.http.put("/v1/limits/newer", json=limits).status_code == 409
            pass_by(5)
            # An old worker and a new one, which takes over its tables and its name.
            for worker in list(workers):
                assert worker.stop() == 0, worker.tail()
                workers.remove(worker)
                system.workers.remove(worker)
                workers.append(system.add_worker(instance_id=worker.name))
                judges = partial(judging, workers[-1])
                eventually("the new worker judges", judges, on_failure=system.logs)
                pass_by(5)
            # New workers, with old and new gateways.
            change_limits(old, 2)
            change_limits(new, 3)
            pass_by(5)
            gateways.remove(old)
            pass_by(1)
        assert old.stop() == 0
        system.gateways.remove(old)

        assert not [answer for got in answers.values() for answer in got if answer["degraded"]]
        log = decided(system)
        for client, got in answers.items():
            # The deny caches of both releases answer some denials: these are no decisions.
            allowed = [answer["remaining"] for answer in got if answer["allowed"]]
            assert allowed == [remaining for allows, remaining in log[client] if allows], client
            assert len(log[client]) <= len(got)
        assert new.http.put("/v1/limits/newer", json=limits).status_code == 200
        system.wait_reservations()
        held = new.http.post("/v1/reservations", json={"client_id": "newer"}).json()
        assert (held["allowed"], held["degraded"], held["held"]) == (True, False, 1)

        # A release to come has written a partition. These workers must not overwrite its values.
        producer = Producer({"bootstrap.servers": system.bootstrap})
        producer.produce(POLICIES_CHANGELOG, NEWER_MARKER, MARKER_KEY, partition=0)
        assert producer.flush(60) == 0

        def stopped() -> list[Process]:
            return [one for one in workers if one.status == EXIT_CONFIG]

        eventually("a worker stops", lambda: bool(stopped()), on_failure=system.logs)
        assert stopped()[0].lines("CRITICAL", "upgrade this worker to that release")
