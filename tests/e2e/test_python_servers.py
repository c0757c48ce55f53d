"""Limiters in programs and servers that fork, and in real web servers of Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_gateway.ports import free_port

from tests.support.broker import CHECKOUT
from tests.support.forking import KINDS
from tests.support.served_apps import KEY
from tests.support.system import PATIENCE_S, Process, System, eventually, running_system

PATIENT_MS = 30_000
"""Deadline and publish timeout of limiters whose checks must be decided, on a busy machine too."""


@pytest.fixture(scope="module")
def system(fresh_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Run a broker, a worker and a gateway for all tests of the module."""
    with running_system(fresh_kafka, tmp_path_factory.mktemp("servers")) as system:
        yield system


WSGI, ASGI = "tests.support.served_apps:wsgi()", "tests.support.served_apps:asgi"
GUNICORN = ["gunicorn", "--workers=2", "--no-control-socket", "--bind=127.0.0.1:{port}"]
SERVERS = {
    "gunicorn sync, preloaded": [*GUNICORN, "--preload", "--worker-class=sync", WSGI],
    "gunicorn gthread": [*GUNICORN, "--worker-class=gthread", "--threads=4", WSGI],
    "gunicorn uvicorn, preloaded": [
        *GUNICORN,
        "--preload",
        "--worker-class=uvicorn.workers.UvicornWorker",
        ASGI,
    ],
    "hypercorn": ["hypercorn", "--workers=2", "--bind=127.0.0.1:{port}", ASGI],
    "uvicorn": ["uvicorn", "--workers=2", "--port={port}", ASGI],
}


def environment(system: System) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (CHECKOUT, CHECKOUT / "gateway", CHECKOUT / "streams"))),
        "STOPLOG_KAFKA": system.bootstrap,
        "STOPLOG_DEADLINE_MS": str(PATIENT_MS),
        "STOPLOG_PUBLISH_TIMEOUT_MS": str(PATIENT_MS),
        "STOPLOG_APPLY_TIMEOUT_MS": str(2 * PATIENT_MS),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_child_of_a_process_with_a_limiter_is_a_node_of_its_own(system: System, kind: str) -> None:
    program = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.support.forking", kind]
    ended = subprocess.run(
        program, env=environment(system), capture_output=True, text=True, timeout=PATIENCE_S, cwd=CHECKOUT
    )
    assert ended.returncode == 0, ended.stderr
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    processes = {"spawn": 2, "within": 1, "destroyed": 0}.get(kind, 3)
    assert len({pid for pid, *_ in answers}) == processes
    for pid, node_id, allowed, degraded, _ in answers:
        assert node_id.endswith(f"-{pid}")
        assert allowed
        assert not degraded


@contextmanager
def serving(system: System, folder: Path, *command: str, **env: str) -> Iterator[tuple[Process, str]]:
    """Run a server of Python; yield it and its URL."""
    port = free_port()
    process = Process(
        command[0],
        [sys.executable, "-W", "ignore", "-m", *(part.format(port=port) for part in command)],
        env={**environment(system), **env},
        log=folder / "server.log",
    )
    process.start()
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.status is None:
            process.stop()


def get(url: str, client: str | None = None) -> httpx.Response | None:
    """Send a request over a new connection; return ``None`` if nothing listens."""
    headers = {} if client is None else {KEY: client}
    try:
        return httpx.get(url, headers=headers, timeout=PATIENCE_S, trust_env=False)
    except httpx.TransportError:
        return None


@pytest.mark.parametrize("name", SERVERS)
def test_each_process_of_a_server_is_a_node_and_all_share_the_limit(
    system: System, tmp_path: Path, name: str
) -> None:
    client = name.replace(" ", "-").replace(",", "")
    system.gateways[0].set_limits(client, "5/day")
    entered = {"ENTERED": "1"} if "preloaded" in name else {}
    with serving(system, tmp_path, *SERVERS[name], **entered) as (process, url):
        pids: set[str] = set()

        def both_serve() -> bool:
            response = get(url)
            if response is not None:
                pids.add(response.text)
            return len(pids) == 2

        eventually("both processes serve", both_serve, on_failure=lambda: process.tail(30))
        statuses = [getattr(get(url, client), "status_code", None) for _ in range(12)]
        assert statuses == [200] * 5 + [429] * 7, process.tail(30)
        # A limiter starts in each process, at the latest at the first request that is limited.
        limited: set[str] = set()

        def both_are_nodes() -> bool:
            response = get(url, "another")
            limited.update([response.text] if response is not None else [])
            nodes = [node["id"] for node in system.gateways[0].report()["nodes"]]
            return all(any(node.endswith(f"-{pid}") for node in nodes) for pid in pids)

        eventually("both are nodes", both_are_nodes, on_failure=lambda: process.tail(30))
        assert process.stop() == 0, process.tail(30)


def test_gevent_worker_of_gunicorn_refuses_a_limiter(system: System, tmp_path: Path) -> None:
    command = [*GUNICORN, "--worker-class=gevent", WSGI]
    with serving(system, tmp_path, *command) as (process, _):
        process.join(PATIENCE_S)
        assert process.status, "it serves"
        assert process.lines("gevent has replaced the threads of this process")


def test_preloaded_gevent_worker_of_gunicorn_fails_limited_requests(system: System, tmp_path: Path) -> None:
    command = [*GUNICORN, "--preload", "--worker-class=gevent", "--graceful-timeout=1", WSGI]
    with serving(system, tmp_path, *command, ENTERED="1") as (process, url):
        eventually("it serves", lambda: get(url) is not None, on_failure=lambda: process.tail(30))
        response = get(url, "anybody")
        assert response is not None
        assert response.status_code == 500
        assert process.lines("gevent has replaced the threads of this process")


def test_processes_of_a_celery_pool_are_nodes_of_their_own(system: System, tmp_path: Path) -> None:
    module = "tests.support.celery_tasks"
    env = {"CELERY_FOLDER": str(tmp_path), "ENTERED": "1"}
    options = [
        "--pool=prefork",
        "--concurrency=2",
        "--without-gossip",
        "--without-mingle",
        "--loglevel=WARNING",
    ]
    with serving(system, tmp_path, "celery", "-A", module, "worker", *options, **env) as (process, _):
        sent = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", module],
            env={**environment(system), "CELERY_FOLDER": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
        )
        assert sent.returncode == 0, sent.stderr + process.tail(30)
        for pid, node_id, allowed, degraded in json.loads(sent.stdout):
            assert pid != process.pid
            assert node_id.endswith(f"-{pid}")
            assert (allowed, degraded) == (True, False)
