"""`stoplog verify` on a sound system, and on one with forged records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from stoplog_worker.algorithm.relay_keys import NO_KEYS
from stoplog_worker.algorithm.sliding_window import Window
from stoplog_worker.algorithm.state_codec import State, encode_state
from stoplog_worker.kafka.progress_reader import ProgressReader
from stoplog_worker.state.store import COUNTERS, POLICIES
from stoplog_worker.verify.verifier import Verifier

from stoplog.kafka.connection import KafkaConnection
from stoplog.partitioning import partition_of
from stoplog.topics import CHECKS, COUNTERS_CHANGELOG, POLICIES_CHANGELOG, REPLIES, load_topics
from stoplog.wire.checks import POSITION_BITS, Batch, Check, encode_batch
from stoplog.wire.replies import Decision, Reply, encode_reply
from tests.support.broker import fresh_broker
from tests.support.meanwhile import meanwhile
from tests.support.system import PATIENCE_S, System, eventually, running_system
from tests.support.terminal import terminal
from tests.support.up import environment, stoplog

PARTITIONS = 4
CLIENTS = [f"client-{number}" for number in range(40)]
WAITING = "waiting for new checks"
RUN = re.compile(r"\x1b\[([\d;]+)m([━╸╺]+)\x1b\[0m")
"""A part of a progress bar, and its color."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Run one system for all tests. The last test stops its worker."""
    with fresh_broker() as broker, running_system(broker, tmp_path_factory.mktemp("system")) as running:
        yield running


def verify(system: System, tmp_path: Path, *options: str) -> tuple[int, Any]:
    env = environment(tmp_path, STOPLOG_KAFKA=system.broker.bootstrap)
    done = stoplog("verify", "--json", *options, env=env)
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_verify_of_sound_system_finds_no_difference(system: System, tmp_path: Path) -> None:
    gateway = system.gateways[0]

    def step(number: int) -> None:
        gateway.check(CLIENTS[number % 40], **({"plan": "gold"} if number % 3 else {}))
        if number % 50 == 7:
            gateway.set_limits(CLIENTS[number % 40], f"{number}/minute", "1000/hour")
        if number % 50 == 13:
            assert gateway.http.post(f"/v1/clients/{CLIENTS[number % 40]}/reset").status_code == 200

    for number in range(80):
        step(number)
    with meanwhile(step):
        status, found = verify(system, tmp_path, "--seconds", "3")

    assert (status, found["differ"]) == (0, 0), found
    assert found["decisions"] > 50
    assert 50 < found["replies"] <= found["decisions"]
    assert found["states"] >= 40
    assert found["policies"] > 0
    assert [partition["partition"] for partition in found["partitions"]] == [0, 1, 2, 3]


def test_verify_of_nothing_says_so_and_exits_with_3(system: System, tmp_path: Path) -> None:
    env = environment(tmp_path, STOPLOG_KAFKA=system.broker.bootstrap)

    def at_rest() -> bool:
        done = stoplog("verify", "--seconds", "0", "--json", env=env)
        assert done.returncode in (0, 3), done.stderr
        found = json.loads(done.stdout)
        assert found["verified"] is (done.returncode == 0)
        assert ("nothing was verified" in done.stderr) is (done.returncode == 3)
        return not found["verified"]

    # Checks of the test before may still be waiting for a checkpoint.
    eventually("the log is at rest", at_rest, on_failure=system.logs)


def bars(output: str) -> Iterator[tuple[str, int, int]]:
    """Yield label, finished columns and remaining columns of each progress bar in a terminal's *output*."""
    lines = [(line.partition(" \x1b[")[0], RUN.findall(line)) for line in output.split("\r\x1b[2K")]
    # An empty or full bar has one color. A bar with several ends with the color of the remaining columns.
    [remaining] = {runs[-1][0] for _, runs in lines if len({color for color, _ in runs}) > 1}
    for label, runs in lines:
        if runs:
            left = sum(len(text) for color, text in runs if color == remaining)
            yield label, sum(len(text) for _, text in runs) - left, left


def test_verify_on_terminal_shows_progress_bar(system: System, tmp_path: Path) -> None:
    env = environment(tmp_path, STOPLOG_KAFKA=system.broker.bootstrap)

    def step(number: int) -> None:
        system.gateways[0].check(CLIENTS[number % 40])

    with (
        meanwhile(step),
        terminal("verify", "--seconds", "3", env=env) as opened,
    ):
        opened.wait_for(WAITING)
        opened.wait_for("decisions recomputed")
        assert opened.process.wait(PATIENCE_S) == 0
    # The bar is erased after the last reading.
    reading, _, found = opened.printed.rpartition("\x1b[2K")
    assert found.startswith("┏")
    shown = list(bars(reading))
    assert {CHECKS, REPLIES, COUNTERS_CHANGELOG, POLICIES_CHANGELOG, WAITING} == {what for what, *_ in shown}
    assert {done + left for _, done, left in shown} == {40}
    waited = [done for what, done, _ in shown if what == WAITING]
    assert waited == sorted(waited)
    assert waited[0] < 10 < 30 < waited[-1]


def test_verify_without_terminal_prints_no_progress_bar(system: System, tmp_path: Path) -> None:
    env = environment(tmp_path, STOPLOG_KAFKA=system.broker.bootstrap)
    with meanwhile(lambda number: system.gateways[0].check(CLIENTS[number % 40])):
        done = stoplog("verify", "--seconds", "1", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert not any(what in done.stdout for what in (WAITING, CHECKS, COUNTERS_CHANGELOG))


def test_verify_with_false_reply_reports_it(system: System, tmp_path: Path) -> None:
    producer = Producer({"bootstrap.servers": system.broker.bootstrap})
    false = Decision(False, 1, 0, 1, 1, 77)

    def step(number: int) -> None:
        offsets: list[Any] = []
        checks = [Check("honest", 0)]
        producer.produce(
            CHECKS,
            encode_batch(Batch(0, 4711, number, checks)),
            partition=partition_of("honest", PARTITIONS),
            on_delivery=lambda _, message: offsets.append(message.offset()),
        )
        producer.flush(10)
        if number % 2:
            forged = Reply(4711, number, offsets[0], -1, [false])
            producer.produce(REPLIES, encode_reply(forged), partition=0)
            producer.flush(10)

    step(0)
    with meanwhile(step):
        status, found = verify(system, tmp_path, "--seconds", "2")

    assert status == 1
    wrong = found["partitions"][partition_of("honest", PARTITIONS)]
    assert found["differ"] == wrong["differ"] > 0
    assert "recomputed Decision(allowed=True" in wrong["differences"][0]
    # The worker's own replies to the same batches are correct, and were compared too.
    assert wrong["replies"] > wrong["differ"]


def test_verify_with_false_state_reports_it(system: System, tmp_path: Path) -> None:
    gateway = system.gateways[0]
    reader = ProgressReader(KafkaConnection(system.broker.bootstrap), lambda *_: None)
    changelogs = {COUNTERS: COUNTERS_CHANGELOG, POLICIES: POLICIES_CHANGELOG}
    verifier = Verifier(reader, load_topics(), changelogs, tmp_path, NO_KEYS)
    partition = partition_of("victim", PARTITIONS)
    gateway.check("victim")
    verifier.begin()
    gateway.check("victim")
    assert system.workers[0].stop() == 0  # its checkpoint is complete, and it does not repair the changelog
    offset = system.records(partition)[-1].offset
    state = State(offset << POSITION_BITS, {60_000: Window(60_000, [2**40], [3])})
    producer = Producer({"bootstrap.servers": system.broker.bootstrap})
    producer.produce(COUNTERS_CHANGELOG, encode_state(state), b"victim", partition=partition)
    # A state of after the last marker, as from a worker that has judged more records.
    # The client is new, so no lease answers its check.
    late = next(
        name for name in map("late-{}".format, range(99)) if partition_of(name, PARTITIONS) == partition
    )
    assert gateway.check(late)["degraded"]
    eventually("the check is in the log", lambda: system.records(partition)[-1].offset > offset)
    state = State(offset + 1 << POSITION_BITS, {60_000: Window(60_000, [2**40], [3])})
    producer.produce(COUNTERS_CHANGELOG, encode_state(state), late.encode(), partition=partition)
    producer.flush(10)

    findings = verifier.finish()
    verifier.close()
    reader.close()

    wrong = findings[partition]
    assert sum(finding.differ for finding in findings) == wrong.differ == 2
    assert {difference.split(":")[0] for difference in wrong.differences} == {
        "counters of victim",
        f"counters of {late}",
    }
