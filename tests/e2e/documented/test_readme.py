"""The README's curl session and its examples in Python, run, print what the README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from stoplog_gateway.cli.up import show_first_requests

import stoplog
from tests.support.broker import CHECKOUT
from tests.support.system import System

VARYING = re.compile(r'(?<=_ms":)[1-9]\d*|(?<=t=)\d+|(?<=retry-after: )\d+|(?<=policy_version":)\d+')
"""Times depend on when a command is run, offsets on what was stored before; the rest is the same."""


def session() -> list[tuple[str, str]]:
    """Commands and what they print."""
    [block] = re.findall(r"```console\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def programs() -> list[str]:
    """Its examples in Python."""
    return re.findall(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)


def shell(command: str) -> str:
    """What *command* prints."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.replace("\r", "").rstrip("\n")


@pytest.mark.needs("curl")
def test_the_curl_session_prints_what_the_readme_shows(
    system: System, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = session()
    assert len(commands) >= 6
    url = system.gateways[0].url
    # `stoplog up` prints two lines to try: whoever has tried them gets the same.
    show_first_requests([url])
    for line in capsys.readouterr().out.splitlines()[1:]:
        assert '"policy_version":' in shell(line)
    for command, shown in commands:
        printed = shell(command.replace("http://127.0.0.1:8080", url))
        assert VARYING.sub("N", printed) == VARYING.sub("N", shown.rstrip("\n")), command


@pytest.mark.parametrize("program", programs())
def test_the_python_examples_print_what_their_comments_say(system: System, program: str) -> None:
    shown = re.findall(r"print\(.*\)  # (.*)", program)
    assert shown
    run = subprocess.run(
        [sys.executable, "-c", program.replace("127.0.0.1:9092", system.bootstrap)],
        env={**os.environ, "STOPLOG_DEADLINE_MS": "10000"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == shown


def test_the_lines_for_a_web_application_limit_its_callers(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hello(_: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    [lines] = re.findall(r"```py\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    app = Starlette(routes=[Route("/", hello)])
    monkeypatch.setenv("STOPLOG_DEADLINE_MS", "10000")
    names = {name: getattr(stoplog, name) for name in stoplog.__all__}
    exec(lines.replace("127.0.0.1:9092", system.bootstrap), {"app": app, **names})

    system.gateways[0].set_limits("web-readme", "2/day")
    with TestClient(app) as client:
        asked = [client.get("/", headers={"X-API-Key": "web-readme"}) for _ in range(3)]
        assert [response.status_code for response in asked] == [200, 200, 429]
        assert client.get("/").status_code == 200
    system.gateways[0].set_limits("web-readme", "9/day")
    with TestClient(app) as client:  # the limiter starts again, and has forgotten its denials
        assert client.get("/", headers={"X-API-Key": "web-readme"}).status_code == 200
