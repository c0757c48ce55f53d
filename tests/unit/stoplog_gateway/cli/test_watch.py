"""`stoplog watch` in a terminal and into a pipe, with a fake gateway that starts and stops."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any, ClassVar

import pytest
from stoplog_gateway.cli.app import app
from stoplog_gateway.ports import free_port
from typer.testing import CliRunner

from tests.support.terminal import CTRL_C, terminal

STATUS = {
    "mode": "normal", "since_ms": 0, "why": None, "degraded_partitions": [], "let_through": 0, "uncounted": 0,
    "store": "ok", "store_why": None, "partitions": 4, "nodes": [], "processes": 1,
    "degraded_processes": 0,
    "failed_closed": 0,
}  # fmt: skip
EVE = {"client_id": "eve\x1b[2J", "checks": 7, "surplus": 0}
PROBLEM = {"type": "urn:stoplog:problem:unauthorized", "title": "No token", "detail": "this needs it"}
REJECTED = {"gateway": "gateway-1", "seconds": 300, "items": [EVE]}


class Canned(BaseHTTPRequestHandler):
    """A gateway that gets 50 checks between two requests, which are 100 ms apart by its clock."""

    looks: ClassVar[int] = 0
    refusal: ClassVar[int | None] = None
    """HTTP status with which it refuses to list rejected clients."""

    def do_GET(self) -> None:
        status = self.refusal if self.path == "/v1/clients/rejected" else None
        body = json.dumps(self.answer() if status is None else PROBLEM).encode()
        self.send_response(status or 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self) -> Any:
        match self.path:
            case "/v1/status":
                return STATUS
            case "/v1/clients/rejected":
                return REJECTED
            case "/v1/traffic":
                Canned.looks += 1
                names = ("received", "allowed", "rejected", "degraded", "published", "uncounted", "in_flight")
                counts = dict.fromkeys(names, 0) | {"received": 50 * self.looks, "allowed": 50 * self.looks}
                return {**counts, "at_ms": 100 * self.looks, "latency": []}

    def log_message(self, *_: object) -> None:
        """Print nothing into the output of a test."""


@contextmanager
def canned(port: int) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", port), Canned) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.shutdown()
            thread.join()


def test_watch_survives_restarts_of_the_gateway_and_restores_the_terminal() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with terminal("watch", "--interval", "0.1", "--url", url, env={**os.environ}) as tty:
        assert "NORMAL" not in tty.wait_for("NO ANSWER")
        with canned(port):
            shown = tty.wait_for("NORMAL", "500", r"eve\x1b[2J")
            assert "eve\x1b" not in shown
        assert "eve" in tty.wait_for("NO ANSWER", "in all")
        assert not tty.as_before
        tty.press(CTRL_C)
        assert tty.ended() == 0
        assert tty.as_before


@pytest.mark.parametrize("options", [[], ["--once"], ["--json"]], ids=" ".join)
def test_watch_into_a_pipe_shows_the_state_once(options: list[str]) -> None:
    with canned(free_port()) as url:
        done = CliRunner().invoke(app, ["watch", "--interval", "0.1", *options, "--url", url])
    assert (done.exit_code, done.stderr) == (0, "")
    if "--json" in options:
        seen = json.loads(done.stdout)
        assert (seen["rates"]["allowed_per_s"], seen["rates"]["p99_ms"]) == (500, None)
        assert (seen["status"], seen["rejected"]) == (STATUS, REJECTED)
    else:
        assert done.stdout.count("NORMAL") == 1
        assert "500" in done.stdout
        assert "\x1b" not in done.stdout


def test_watch_with_an_unexpected_answer_asks_for_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REJECTED, "items", None)
    with canned(free_port()) as url:
        done = CliRunner().invoke(app, ["watch", "--once", "--url", url])
    assert done.exit_code == 3
    assert "is it a gateway of this version?" in done.stderr


def test_watch_without_a_token_ends_with_1_and_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Canned, "refusal", 401)
    with canned(free_port()) as url:
        done = CliRunner().invoke(app, ["watch", "--once", "--url", url])
    assert done.exit_code == 1
    assert "--token-file" in done.stderr
