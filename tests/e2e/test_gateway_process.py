"""How a gateway's process ends: after a signal, and after an error that it cannot survive."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from stoplog_gateway.local.kafka_broker import Broker

from stoplog.topics import COPARTITIONED, DEFAULT_FILE
from tests.support.system import PATIENCE_S
from tests.support.up import BROKEN_GATEWAY, environment, stoplog


def test_gateway_with_different_topics_exits_78_with_one_line(fresh_kafka: Broker, tmp_path: Path) -> None:
    raw = yaml.safe_load(DEFAULT_FILE.read_text())
    for name in COPARTITIONED:
        raw["topics"][name]["partitions"] = 8
    topics = tmp_path / "topics.yaml"
    topics.write_text(yaml.safe_dump(raw))
    env = environment(tmp_path, STOPLOG_KAFKA=fresh_kafka.bootstrap, STOPLOG_TOPICS=str(topics))
    ended = stoplog("gateway", env=env)
    assert ended.returncode == 78
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "topic checks has 4 partitions, but topics.yaml requires 8" in ended.stderr


def test_gateway_with_unreadable_topics_file_exits_78_with_one_line(tmp_path: Path) -> None:
    ended = stoplog("gateway", env=environment(tmp_path, STOPLOG_TOPICS=str(tmp_path / "nowhere.yaml")))
    assert ended.returncode == 78
    assert ended.stderr.count("\n") == 1
    assert "nowhere.yaml cannot be read as topics" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_gateway_signaled_while_starting_exits(tmp_path: Path, number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a broker that never answers
        env = environment(tmp_path, STOPLOG_KAFKA=f"127.0.0.1:{silent.getsockname()[1]}")
        process = subprocess.Popen(
            [sys.executable, "-m", "stoplog_gateway", "gateway"], env=env, stderr=subprocess.PIPE, text=True
        )
        connection, _ = silent.accept()
        with connection:
            process.send_signal(number)
            _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    # A slow machine may find out in time that no broker answers.
    assert all("degraded: checks fail open" in line for line in errors.splitlines())


def test_gateway_with_dead_thread_exits_for_a_restart(tmp_path: Path) -> None:
    env = environment(tmp_path, STOPLOG_KAFKA="127.0.0.1:1")
    command = [sys.executable, "-c", BROKEN_GATEWAY, "gateway"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 1
    assert " CRITICAL stoplog.client.transport.kafka_transport: thread stoplog-replies failed" in ended.stderr
    assert "RuntimeError: a bug" in ended.stderr
