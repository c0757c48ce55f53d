"""Every command of README.md and docs/*.md, run against a real system.

tests/unit/test_docs.py lists the exceptions.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from stoplog_gateway.access.local_token import TOKEN_FILE
from stoplog_gateway.cli.first_requests import first_requests
from stoplog_gateway.ports import free_port
from stoplog_gateway.settings import GatewaySettings

import stoplog
from tests.support.broker import CHECKOUT, home_with_jars
from tests.support.docs import Block, all_blocks
from tests.support.java import kafka_scripts
from tests.support.meanwhile import meanwhile
from tests.support.system import Process, System, eventually
from tests.support.up import environment as own_environment

VARYING: Final = re.compile(
    r'(?<=_ms":)[1-9]\d*|(?<=t=)\d+|(?<=retry-after: )\d+|(?<=policy_version":)\d+|'
    r'(?<=position":)\d+'
)
"""Times depend on when a command is run, versions and positions on what was stored before. All else must be
equal."""

RUNS_ON: Final = ("stoplog up", "stoplog worker", "stoplog gateway", "uvicorn")
"""Programs that run until Ctrl-C."""


def shown(language: str, *, tag: str = "") -> list[Block]:
    return [block for block in all_blocks() if block.language == language and block.tag == tag]


def each(language: str, *, tag: str = "") -> pytest.MarkDecorator:
    """Return the parameters of a test that is run for each of these blocks."""
    curl = pytest.mark.needs("curl")
    found = shown(language, tag=tag)
    parameters = [
        pytest.param(block, id=block.id, marks=[curl] if "curl " in block.text else []) for block in found
    ]
    return pytest.mark.parametrize("block", parameters)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Kafka's scripts."""
    folder = tmp_path_factory.mktemp("kafka-bin")
    kafka_scripts(folder)
    return folder


@pytest.fixture
def env(system: System, tools: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a reader's shell: `stoplog` and Kafka's scripts are on the PATH."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("STOPLOG_")}
    return {
        **own,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), str(tools), own["PATH"]]),
        "STOPLOG_KAFKA": system.bootstrap,
        "STOPLOG_URL": system.gateways[0].url,
        "STOPLOG_HOME": str(tmp_path / "home"),
        "STOPLOG_TOKEN_FILE": str(system.folder / TOKEN_FILE),
        "TOKEN": (system.folder / TOKEN_FILE).read_text().strip(),
        "STOPLOG_DEADLINE_MS": "10000",
        "STOPLOG_METRICS_PORT": "0",
    }


def here(text: str, system: System) -> str:
    """Return *text* with the addresses of *system* and with free ports, in place of the default ones."""
    text = text.replace("http://127.0.0.1:8080", system.gateways[0].url)
    text = text.replace("127.0.0.1:9092", system.bootstrap)
    return re.sub(r"(PORT=|--port |--envoy 127\.0\.0\.1:)\d+", lambda match: f"{match[1]}{free_port()}", text)


def shell(command: str, env: dict[str, str]) -> str:
    """Return what *command* prints; it must succeed."""
    done = subprocess.run(
        ["bash", "-c", command], env=env, cwd=CHECKOUT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout.replace("\r", "").rstrip("\n")


class Started:
    """A program of a block that runs until Ctrl-C; it has started when *is_ready*."""

    def __init__(
        self, command: str, is_ready: Callable[[Process], bool], env: dict[str, str], log: Path
    ) -> None:
        self._process = Process(command, ["bash", "-c", f"exec env {command}"], env=env, log=log)
        self._process.start()

        def ready() -> bool:
            assert self._process.status is None, self._process.tail()
            return is_ready(self._process)

        eventually(command, ready, on_failure=self._process.tail)

    def interrupt(self) -> None:
        """Press Ctrl-C and wait for the end."""
        self._process.signal(signal.SIGINT)
        self._process.join(60)
        assert self._process.status in (0, -signal.SIGINT, 128 + signal.SIGINT), self._process.tail()


def readiness(kind: str, command: str, system: System) -> Callable[[Process], bool]:
    """Return what tells that *command*, a program of `RUNS_ON`, has started."""
    if kind == "stoplog worker":
        before = deciding(system)
        return lambda _: bool(deciding(system) - before)
    if kind == "stoplog gateway":
        [port] = re.findall(r"STOPLOG_PORT=(\d+)", command)
        return lambda _: answers(f"http://127.0.0.1:{port}/readyz?strict=1")
    line = "stoplog is ready" if kind == "stoplog up" else "Uvicorn running"
    return lambda process: bool(process.lines(line))


def deciding(system: System) -> set[str]:
    """Return the ids of the workers that decide checks of some partition."""
    return {
        node["id"]
        for node in system.gateways[0].report()["nodes"]
        if any(partition["state"] == "running" for partition in node["partitions"].values())
    }


def answers(url: str) -> bool:
    """Return whether *url* responds with status 200."""
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def kind_of(command: str) -> str | None:
    """Return which program of `RUNS_ON` *command* starts, if any."""
    bare = re.sub(r"^([A-Z_]+=\S+ )*", "", command)
    return next((kind for kind in RUNS_ON if bare.startswith(kind)), None)


@each("sh")
def test_shell_block_succeeds(block: Block, system: System, env: dict[str, str], tmp_path: Path) -> None:
    with ExitStack() as running:
        if "stoplog verify" in block.text:  # without checks it verifies nothing, and says so
            check = partial(system.gateways[0].check, "background", cost=0)
            running.enter_context(meanwhile(lambda _: check()))
        for number, line in enumerate(block.lines()):
            command = here(line.split("   #")[0].strip(), system)
            kind = kind_of(command)
            if kind is None:
                shell(command, env)
                continue
            # `stoplog up` starts a system of its own; all else joins the one of this test.
            alone = {**own_environment(home_with_jars(tmp_path / f"up-{number}")), "PATH": env["PATH"]}
            used = alone if kind == "stoplog up" else env
            is_ready = readiness(kind, command, system)
            program = Started(command, is_ready, used, tmp_path / f"{number}.log")
            running.callback(program.interrupt)


@each("console")
def test_session_prints_what_the_page_shows(block: Block, system: System, env: dict[str, str]) -> None:
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)[1:]
    assert parts
    for command, output in zip(parts[::2], parts[1::2], strict=True):
        printed = shell(here(command, system), env)
        assert VARYING.sub("N", printed) == VARYING.sub("N", output.rstrip("\n")), command


@each("python")
def test_program_prints_what_its_comments_say(block: Block, system: System, env: dict[str, str]) -> None:
    expected = re.findall(r"print\(.*\)  # (.*)", block.text)
    assert expected
    run = subprocess.run(
        [sys.executable, "-c", here(block.text, system)], env=env, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == expected


def test_every_block_is_run_or_tagged() -> None:
    run = {block.id for language in ("sh", "console", "python") for block in shown(language)}
    commands = {
        block.id for block in all_blocks() if block.language in ("sh", "console", "python", "py", "bash")
    }
    assert commands - run == {block.id for block in all_blocks() if block.tag}


@pytest.mark.needs("curl")
def test_commands_that_up_prints_work(system: System, env: dict[str, str]) -> None:
    settings = GatewaySettings(home=system.folder)
    _, limit, check = first_requests([system.gateways[0].url], settings)
    assert shell(limit, env) == "client alice: 5/minute"
    assert '"policy_version":' in shell(check, env)


@pytest.fixture
def deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline that a busy machine does not miss, for limiters of this process."""
    monkeypatch.setenv("STOPLOG_DEADLINE_MS", "10000")


@pytest.mark.usefixtures("deadline")
@each("python", tag="app")
def test_application_limits_its_callers(block: Block, system: System) -> None:
    key = re.sub(r"\W", "-", block.id)
    app = FastAPI()

    @app.get("/")
    async def hello() -> str:
        return "hello"

    names = {name: getattr(stoplog, name) for name in stoplog.__all__}
    space = {"app": app, **names}
    exec(here(block.text, system), space)
    app = space["app"]
    last = app.routes[-1]
    path, [method] = last.path, last.methods

    system.gateways[0].set_limits(key, "2/day")
    with TestClient(app) as client:
        statuses = [client.request(method, path, headers={"X-API-Key": key}).status_code for _ in range(3)]
        assert statuses[-1] == 429
        assert client.request(method, path).status_code == 200
    system.gateways[0].set_limits(key, "99/day")
    with TestClient(app) as client:  # the limiter starts again, and has forgotten its denials
        assert client.request(method, path, headers={"X-API-Key": key}).status_code == 200
