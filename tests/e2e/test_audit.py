"""Every change of limits is recorded with its source, on a real broker with real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import NewTopic
from stoplog_gateway.local.kafka_broker import Broker

from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import create_topics
from stoplog.partitioning import partition_of
from stoplog.topics import AUDIT, UPDATES, load_topics
from stoplog.wire.audit import AuditRecord, decode_audit
from stoplog.wire.limit_updates import UpdateKey, encode_update_key
from tests.support.broker import QuickBroker, fresh_broker, fresh_cluster
from tests.support.meanwhile import meanwhile
from tests.support.system import Gateway, eventually, running_system
from tests.support.up import environment, stoplog

CLIENTS = [f"client-{number}" for number in range(30)]


def history(gateway: Gateway, client: str) -> list[dict[str, Any]]:
    response = gateway.http.get(f"/v1/limits/{client}/history")
    assert response.status_code == 200, response.text
    items: list[dict[str, Any]] = response.json()["items"]
    return items


def records(broker: Broker) -> list[tuple[int, bytes, AuditRecord]]:
    """Return partition, key and content of every record of ``audit``."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "test"})
    found = []
    try:
        for partition in range(4):
            place = TopicPartition(AUDIT, partition, 0)
            _, end = consumer.get_watermark_offsets(place, timeout=30)
            consumer.assign([place])
            for _ in range(end):
                message: Any = consumer.poll(30)
                assert message is not None
                assert message.error() is None
                found.append((partition, message.key(), decode_audit(message.value())))
        return found
    finally:
        consumer.close()


def test_changes_are_recorded_with_their_source_once_for_readers_and_survive_kills_of_the_owner(
    tmp_path: Path,
) -> None:
    with (
        fresh_broker() as broker,
        running_system(broker, tmp_path, deadline_ms=4_000, apply_timeout_ms=30_000) as system,
    ):
        (worker,), (gateway,) = system.workers, system.gateways
        for step, client in enumerate(CLIENTS):
            gateway.set_limits(client, f"{step + 1}/minute")
            if step % 10 == 5:
                worker.kill()
                worker.start()
                eventually("the gateway is ready", gateway.ready, on_failure=system.logs)
        for client in CLIENTS:
            gateway.set_limits(client, "500/hour")
        worker.kill()
        worker.start()
        eventually("the gateway is ready", gateway.ready, on_failure=system.logs)

        def complete() -> bool:
            return all(len(history(gateway, client)) == 2 for client in CLIENTS)

        eventually("every change is recorded", complete, on_failure=system.logs)
        for step, client in enumerate(CLIENTS):
            second, first = history(gateway, client)
            assert (first["limits"], first["previous_limits"]) == ([f"{step + 1}/minute"], None)
            assert second["limits"] == ["500/hour"]
            assert second["previous_limits"] == first["limits"]
            assert second["previous_version"] == first["policy_version"]
            assert (second["who"], second["address"]) == ("local", "127.0.0.1")
        by_position: dict[tuple[int, int], set[tuple[bytes, AuditRecord]]] = {}
        for partition, key, record in records(broker):
            hashable = (key, str(record))
            by_position.setdefault((partition, record.position), set()).add(hashable)  # type: ignore[arg-type]
        assert all(len(same) == 1 for same in by_position.values()), "a repeated record is the same"
        assert len(by_position) == 2 * len(CLIENTS)
        change = f"client {CLIENTS[0]}: limits set to 500/hour, before: 1/minute; by local"
        assert worker.lines("stoplog.audit", change)

        unknown = gateway.http.delete("/v1/limits/nobody").json()
        assert (unknown["applied"], unknown["existed"]) == (True, False)
        assert gateway.http.delete(f"/v1/limits/{CLIENTS[0]}").json()["existed"] is True
        assert gateway.http.post("/v1/clients/nobody/reset").json()["existed"] is False
        gateway.check(CLIENTS[0])
        reset = gateway.http.post(f"/v1/clients/{CLIENTS[0]}/reset", headers={"X-Request-Id": "r-17"})
        assert reset.json()["existed"] is True

        producer = Producer({"bootstrap.servers": broker.bootstrap})
        key = encode_update_key(UpdateKey("client", CLIENTS[0]))
        producer.produce(UPDATES, b'{"limits":"unlimited"}', key, partition_of(CLIENTS[0], 4))
        assert producer.flush(30) == 0
        eventually("the direct change is recorded", lambda: len(history(gateway, CLIENTS[0])) == 5)
        changes = [(one["change"], one["who"], one["request_id"]) for one in history(gateway, CLIENTS[0])]
        assert changes[:2] == [("set", "kafka", None), ("reset", "local", "r-17")]
        assert [change for change, _, _ in changes[2:]] == ["delete", "set", "set"]

        env = environment(tmp_path, STOPLOG_URL=gateway.url)
        shown = stoplog("limits", "history", CLIENTS[0], "--json", env=env)
        assert [one["change"] for one in json.loads(shown.stdout)] == [change for change, _, _ in changes]
        assert gateway.http.put("/v1/plans/gold", json={"limits": "7/minute"}).status_code == 200
        plan = stoplog("limits", "history", "--plan", "gold", env=env)
        assert "7/minute" in plan.stdout
        deleted = stoplog("limits", "delete", "nobody", env=env)
        assert (deleted.returncode, deleted.stdout) == (0, "client nobody: nothing to delete\n")
        assert stoplog("reset", "nobody", env=env).stdout == "nobody: nothing to reset\n"
        env = environment(tmp_path, STOPLOG_KAFKA=broker.bootstrap)
        with meanwhile(lambda step: gateway.check(CLIENTS[step % len(CLIENTS)])):
            verified = stoplog("verify", "--seconds", "2", "--json", env=env)
        assert verified.returncode == 0, verified.stdout + verified.stderr

        assert stoplog("topics", "create", "--lanes", "2", env=env).returncode == 0
        system.add_worker(lane="b")

        def both_record() -> bool:
            gateway.set_limits("alice", "3/minute")
            key_of_alice = encode_update_key(UpdateKey("client", "alice"))
            found = [record.position for _, key, record in records(broker) if key == key_of_alice]
            return len(found) > len(set(found))

        eventually("both lanes record changes", both_record, on_failure=system.logs)
        positions = [one["position"] for one in history(gateway, "alice")]
        assert len(positions) == len(set(positions))


def make_topics_of_two_brokers(bootstrap: str) -> None:
    """Create all topics on node 1, but ``audit`` on node 3."""
    admin = silent_admin(KafkaConnection(bootstrap))
    topics = [
        NewTopic(
            spec.name,
            spec.partitions,
            replica_assignment=[[3 if spec.name == AUDIT else 1]] * spec.partitions,
            config=spec.config(),
        )
        for spec in load_topics().values()
    ]
    for future in admin.create_topics(topics).values():
        future.result(30)


def test_changes_applied_while_the_broker_of_the_audit_is_down_are_recorded_in_the_end(
    tmp_path: Path,
) -> None:
    with fresh_cluster(kind=QuickBroker) as (broker, _, broker_of_audit):
        make_topics_of_two_brokers(broker.bootstrap)
        with running_system(broker, tmp_path, deadline_ms=4_000, apply_timeout_ms=30_000) as system:
            (worker,), (gateway,) = system.workers, system.gateways
            broker_of_audit.kill()
            for client in CLIENTS:
                assert gateway.set_limits(client, "5/minute")["applied"]
            waiting = "is not in topic audit yet"
            eventually("attempts fail", lambda: bool(worker.lines(waiting)), on_failure=system.logs)
            eventually("checks are decided", lambda: decided(gateway), on_failure=system.logs)

            # The checkpoints written meanwhile do not pass the changes: a crash loses none.
            worker.kill()
            failures = len(worker.lines(waiting))
            worker.start()
            eventually("checks are decided", lambda: decided(gateway), on_failure=system.logs)
            eventually("attempts fail again", lambda: len(worker.lines(waiting)) > failures)
            broker_of_audit.start()

            def complete() -> bool:
                return all(len(history(gateway, client)) == 1 for client in CLIENTS)

            eventually("every change is recorded", complete, on_failure=system.logs)
            for client in CLIENTS:
                assert gateway.set_limits(client, "9/minute")["applied"]
            eventually("later ones too", lambda: len(records(broker)) >= 2 * len(CLIENTS))
            last: dict[int, int] = {}
            for partition, _, record in records(broker):
                assert record.position > last.get(partition, -1), "in order, and once"
                last[partition] = record.position
            assert not worker.lines("is missing in topic audit")


def decided(gateway: Gateway) -> bool:
    return not gateway.check(CLIENTS[0])["degraded"]


def test_system_without_the_topic_decides_as_before_and_names_the_command(tmp_path: Path) -> None:
    with fresh_broker(topics=False) as broker:
        admin = silent_admin(KafkaConnection(broker.bootstrap))
        specs = load_topics()
        create_topics(admin, [spec for name, spec in specs.items() if name != AUDIT])
        with running_system(broker, tmp_path, deadline_ms=4_000) as system:
            (worker,), (gateway,) = system.workers, system.gateways
            assert gateway.set_limits("alice", "3/minute")["applied"]
            assert gateway.check("alice")["remaining"] == 2
            [warning] = worker.lines("not audited")
            assert "topic audit does not exist: run `stoplog topics create`" in warning
            assert worker.lines(
                "stoplog.audit", "client alice: limits set to 3/minute, before: no limits; by local"
            )
            refused = gateway.http.get("/v1/limits/alice/history")
            assert refused.status_code == 503
            assert "run `stoplog topics create`" in refused.json()["detail"]

            env = environment(tmp_path, STOPLOG_KAFKA=broker.bootstrap)
            created = stoplog("topics", "create", "--json", env=env)
            assert json.loads(created.stdout)["created"] == [AUDIT]
            assert gateway.http.get("/v1/limits/alice/history").json()["items"] == []
            worker.stop()
            worker.start()
            eventually("the gateway is ready", gateway.ready, on_failure=system.logs)
            gateway.set_limits("alice", "4/minute")
            eventually("the change is recorded", lambda: len(history(gateway, "alice")) == 1)
            assert history(gateway, "alice")[0]["previous_limits"] == ["3/minute"]
