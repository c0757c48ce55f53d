"""`stoplog gateway --processes 2`: one port, one page of metrics, and any process may die."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
import yaml
from stoplog_gateway.envoy.messages import METHOD, OK, SERVICE, RateLimitRequest, RateLimitResponse
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_gateway.ports import free_port

from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.partition_count import write_partition_count
from stoplog.partitioning import partition_of
from stoplog.topics import CHECKS, COPARTITIONED, DEFAULT_FILE
from stoplog.wire.checks import Batch, decode_checks_record
from stoplog.wire.partition_count import PartitionCount
from tests.support.system import PATIENCE_S, Gateway, eventually, running_system
from tests.support.up import BROKEN_GATEWAY, environment, stoplog

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)  # channels do not share connections
CONNECTIONS = 40
"""So many that both processes get some: all go to one of the two only once in 2 ** 39 runs."""


def processes(gateway: Gateway) -> list[psutil.Process]:
    return psutil.Process(gateway.pid).children()


def metric(gateway: Gateway, name: str) -> float:
    """Return the value of a metric over a new connection, which any of the processes may answer."""
    lines = httpx.get(f"{gateway.url}/metrics", trust_env=False).raise_for_status().text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def look(gateway: Gateway, path: str) -> dict[str, Any]:
    """Return the answer to a GET over a new connection, which any of the processes may answer."""
    answer: dict[str, Any] = httpx.get(f"{gateway.url}{path}", trust_env=False).raise_for_status().json()
    return answer


def rejected(gateway: Gateway) -> dict[str, int]:
    return {item["client_id"]: item["checks"] for item in look(gateway, "/v1/clients/rejected")["items"]}


def nodes(gateway: Gateway) -> list[str]:
    return [node["id"] for node in look(gateway, "/v1/status")["nodes"] if node["role"] == "gateway"]


def check(client: httpx.Client, url: str) -> None:
    answer = client.post(f"{url}/v1/check", json={"client_id": "alice", "cost": 0}).raise_for_status().json()
    assert answer["allowed"]


def connections_of_each(gateway: Gateway, address: str) -> list[int]:
    """Return how many callers are connected to *address* at each of the two processes."""
    port = int(address.rsplit(":", 1)[1])
    of_each = [
        len([c for c in p.net_connections("tcp") if c.laddr.port == port and c.status == "ESTABLISHED"])
        for p in processes(gateway)
    ]
    assert len(of_each) == 2
    return of_each


def call_envoy(channel: grpc.Channel) -> None:
    request = RateLimitRequest(domain="edge")
    descriptor = request.descriptors.add()
    descriptor.hits_addend.value = 0
    descriptor.entries.add(key="user", value="alice")
    call: Any = channel.unary_unary(f"/{SERVICE}/{METHOD}")
    response = RateLimitResponse.FromString(call(request.SerializeToString(), timeout=PATIENCE_S))
    assert response.overall_code == OK


def test_processes_on_one_port_share_load_and_are_replaced(fresh_kafka: Broker, tmp_path: Path) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    with running_system(fresh_kafka, tmp_path, gateways=0) as system, ExitStack() as stack:
        envoy = f"127.0.0.1:{free_port()}"
        gateway = system.add_gateway(home=scratch, processes=2, deadline_ms=5_000, envoy=envoy)
        system.wait_ready()
        eventually("both processes are listed", lambda: nodes(gateway) == ["gateway-1-1", "gateway-1-2"])

        clients = [stack.enter_context(httpx.Client(trust_env=False)) for _ in range(CONNECTIONS)]
        for _ in range(3):
            for client in clients:
                check(client, gateway.url)
        sent = 3 * CONNECTIONS  # checks so far
        assert min(connections_of_each(gateway, gateway.url)) > 0
        for _ in range(CONNECTIONS):
            channel = stack.enter_context(grpc.insecure_channel(envoy, OWN_CONNECTION))
            call_envoy(channel)
            sent += 1
        assert min(connections_of_each(gateway, envoy)) > 0
        assert sum(connections_of_each(gateway, envoy)) == CONNECTIONS
        # The page contains the last numbers that the other process has published: each in its own time.
        eventually("all are counted", lambda: metric(gateway, "stoplog_checks_received_total") == sent)
        eventually("all are timed", lambda: metric(gateway, "stoplog_check_duration_seconds_count") == sent)
        assert metric(gateway, "stoplog_nodes") == 3
        batches = [decode_checks_record(r.value) for r in system.records(partition_of("alice", 4))]
        assert len({b.incarnation for b in batches if isinstance(b, Batch)}) == 2
        assert len({b.partition for b in batches if isinstance(b, Batch)}) == 2

        [folder] = (scratch / "gateways").iterdir()
        shutil.rmtree(folder)
        eventually("all are counted again", lambda: metric(gateway, "stoplog_checks_received_total") == sent)
        assert metric(gateway, "stoplog_nodes") == 3

        killed = processes(gateway)[0]
        killed.kill()
        killed.wait(30)
        shown = [float(sent)]
        while len(nodes(gateway)) != 2 or len(processes(gateway)) != 2:
            with httpx.Client(trust_env=False) as client:
                check(client, gateway.url)
            sent += 1
            shown.append(metric(gateway, "stoplog_checks_received_total"))
        assert shown == sorted(shown)
        assert shown[-1] <= sent
        eventually("all are counted", lambda: metric(gateway, "stoplog_checks_received_total") == sent)
        assert len(gateway.lines(" WARNING ", "ended (status -9); starting it again in 0.5 s")) == 1

        left = processes(gateway)
        assert gateway.stop() == 0
        assert [process for process in left if process.is_running()] == []
        assert list(scratch.iterdir()) == []


def test_status_of_any_process_covers_all_processes(fresh_kafka: Broker, tmp_path: Path) -> None:
    with running_system(fresh_kafka, tmp_path, gateways=0) as system, ExitStack() as stack:
        gateway = system.add_gateway(processes=2, deadline_ms=2_000, breaker_misses=1)
        system.wait_ready()
        eventually("both processes are listed", lambda: look(gateway, "/v1/status")["processes"] == 2)
        for client_id in ("mallory", "eve"):
            gateway.set_limits(client_id, "0/hour")

        clients = [stack.enter_context(httpx.Client(trust_env=False)) for _ in range(CONNECTIONS)]
        for client_id in ("mallory", "eve", "mallory"):
            for client in clients:
                assert not client.post(f"{gateway.url}/v1/check", json={"client_id": client_id}).json()[
                    "allowed"
                ]
        whole = {"mallory": 2 * CONNECTIONS, "eve": CONNECTIONS}
        # Many new connections reach both processes, and each process must report the whole.
        eventually(
            "both processes report all rejections",
            lambda: all(rejected(gateway) == whole for _ in range(CONNECTIONS // 2)),
        )

        # The check goes to one process. Only that process notices that no worker replies.
        # On a slow machine, a process may have been degraded until the worker had started.
        earlier = len(gateway.lines(" WARNING ", "degraded: "))
        system.workers[0].signal(signal.SIGSTOP)
        assert clients[0].post(f"{gateway.url}/v1/check", json={"client_id": "alice"}).json()["degraded"]
        eventually(
            "both processes report that one is degraded",
            lambda: all(
                (status["mode"], status["processes"], status["degraded_processes"], status["let_through"])
                == ("degraded", 2, 1, 1)
                for status in (look(gateway, "/v1/status") for _ in range(CONNECTIONS // 2))
            ),
            on_failure=lambda: str(look(gateway, "/v1/status")),
        )
        (warning,) = gateway.lines(" WARNING ", "degraded: ")[earlier:]
        (process,) = (process for process in processes(gateway) if f"[{process.pid}]" in warning)
        process.kill()
        process.wait(30)
        eventually(
            "the dead process's state is dropped", lambda: look(gateway, "/v1/status")["mode"] == "normal"
        )


def test_processes_with_wrong_topics_exit_78_with_one_line(fresh_kafka: Broker, tmp_path: Path) -> None:
    raw = yaml.safe_load(DEFAULT_FILE.read_text())
    found = raw["topics"][CHECKS]["partitions"]
    for name in COPARTITIONED:
        raw["topics"][name]["partitions"] = 2 * found
    topics = tmp_path / "topics.yaml"
    topics.write_text(yaml.safe_dump(raw))
    env = environment(tmp_path, STOPLOG_KAFKA=fresh_kafka.bootstrap, STOPLOG_TOPICS=str(topics))
    connection = KafkaConnection(fresh_kafka.bootstrap)
    write_partition_count(
        connection, PartitionCount(2 * found)
    )  # as if `checks` had been deleted and created again
    try:
        ended = stoplog("gateway", "--processes", "2", env=env)
    finally:
        write_partition_count(connection, PartitionCount(found))
    assert ended.returncode == 78
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert f"topic checks has {found} partitions, but clients are hashed over {2 * found}" in ended.stderr


def test_processes_on_taken_port_exit_with_one_line(tmp_path: Path) -> None:
    env = environment(tmp_path, STOPLOG_KAFKA="127.0.0.1:1", STOPLOG_PROCESSES="2")
    with started([sys.executable, "-m", "stoplog_gateway", "gateway"], env) as first:
        wait_for_line(first, "Started server process")
        ended = stoplog("gateway", env=env)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"port {env['STOPLOG_PORT']} is taken: set STOPLOG_PORT" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_processes_signaled_while_starting_exit(tmp_path: Path, number: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a broker that never answers
        env = environment(
            tmp_path, STOPLOG_KAFKA=f"127.0.0.1:{silent.getsockname()[1]}", STOPLOG_PROCESSES="2"
        )
        with started([sys.executable, "-m", "stoplog_gateway", "gateway"], env) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(number)
                output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    # A slow machine may find out in time that no broker answers.
    assert all("degraded: checks fail open" in line for line in output.splitlines())


def test_processes_on_claimed_port_exit_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        env = environment(
            tmp_path, STOPLOG_KAFKA=f"127.0.0.1:{silent.getsockname()[1]}", STOPLOG_PROCESSES="2"
        )
        with started([sys.executable, "-m", "stoplog_gateway", "gateway"], env):
            connection, _ = silent.accept()
            with connection:
                ended = stoplog("gateway", env=env)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert f"port {env['STOPLOG_PORT']} is taken: set STOPLOG_PORT" in ended.stderr


def test_processes_with_ignored_signals_keep_running(tmp_path: Path) -> None:
    """This is the state after `nohup stoplog gateway`, and of a command that a script starts with `&`."""
    env = environment(tmp_path, STOPLOG_KAFKA="127.0.0.1:1", STOPLOG_PROCESSES="2")
    ignoring = ["sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh"]
    with started([*ignoring, sys.executable, "-m", "stoplog_gateway", "gateway"], env) as process:
        for _ in range(2):
            wait_for_line(process, "Started server process")
        for number in (signal.SIGHUP, signal.SIGINT):
            process.send_signal(number)
        psutil.Process(process.pid).children()[0].kill()
        wait_for_line(process, "ended (status -9); starting it again in 0.5 s")
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


STOPPED_EARLY = """
import os, pathlib, signal, sys
import stoplog_gateway.server.server
from stoplog_gateway.server.process_slot import ProcessSlot
from stoplog.wire.partition_count import PartitionCount
from stoplog_gateway.settings import GatewaySettings
bind_port = stoplog_gateway.server.server.bind_port
def stopped(*place, **options):
    signal.raise_signal(signal.SIGTERM)
    return bind_port(*place, **options)
stoplog_gateway.server.server.bind_port = stopped
slot = ProcessSlot(1, 0, pathlib.Path(sys.argv[1]), os.pipe()[0])
assert stoplog_gateway.server.server.serve(GatewaySettings(), slot) is None
"""
"""A process of several that gets a signal after its start and before it serves."""


def test_process_signaled_just_before_serving_exits(tmp_path: Path) -> None:
    env = environment(tmp_path, STOPLOG_KAFKA="127.0.0.1:1")
    command = [sys.executable, "-c", STOPPED_EARLY, str(tmp_path)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 0, ended.stderr


def test_processes_without_their_parent_exit(tmp_path: Path) -> None:
    env = environment(tmp_path, STOPLOG_KAFKA="127.0.0.1:1", STOPLOG_PROCESSES="2", TMPDIR=str(tmp_path))
    with started([sys.executable, "-m", "stoplog_gateway", "gateway"], env) as process:
        for _ in range(2):
            wait_for_line(process, "Started server process")
        children = psutil.Process(process.pid).children()
        assert len(children) == 2
        process.kill()
        assert psutil.wait_procs(children, timeout=PATIENCE_S)[1] == []


def test_process_with_dead_thread_is_restarted_with_reason(tmp_path: Path) -> None:
    env = environment(tmp_path, STOPLOG_KAFKA="127.0.0.1:1", STOPLOG_PROCESSES="2")
    with started([sys.executable, "-c", BROKEN_GATEWAY, "gateway"], env) as process:
        wait_for_line(
            process, "process 1 ended (thread stoplog-replies failed: ", "starting it again in 0.5 s"
        )
        wait_for_line(process, "process 1 ended (", "starting it again in 1.0 s")
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


@contextmanager
def started(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def wait_for_line(process: subprocess.Popen[Any], *needles: str) -> str:
    for line in process.stdout or ():
        if all(needle in line for needle in needles):
            return str(line)
    raise AssertionError(f"the process ended without a line with {needles}")
