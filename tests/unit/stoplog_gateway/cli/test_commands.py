"""The command line without a system: usage, help, and errors of a gateway that answers or does not."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import msgspec
import pytest
import stoplog_gateway.cli.bench
import stoplog_gateway.cli.topics
from stoplog_gateway.cli.app import app
from stoplog_gateway.http.problems import FORBIDDEN, NO_LIMITS, UNAUTHORIZED
from stoplog_gateway.kafka_reachable import ensure_reachable
from stoplog_gateway.ports import free_port
from typer.testing import CliRunner, Result

from stoplog.asgi.problem import UNAVAILABLE, Kind, problem

COMMANDS = [
    ["up"],
    ["broker"],
    ["topics", "create"],
    ["topics", "verify"],
    ["worker"],
    ["gateway"],
    ["check"],
    ["reset"],
    ["usage"],
    ["status"],
    ["watch"],
    ["verify"],
    ["bench"],
    ["limits", "set"],
    ["limits", "get"],
    ["limits", "delete"],
    ["limits", "history"],
    ["limits", "list"],
    ["tokens", "add"],
    ["tokens", "list"],
    ["tokens", "revoke"],
]


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200", **env})


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_a_command_has_an_example_and_json(command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.exit_code == 0
    assert "$ " in done.stdout
    assert "stoplog " + " ".join(command) in done.stdout
    assert "--json" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["check"],
        ["check", "alice", "--cost", "much"],
        ["check", "alice", "--on-unavailable", "denied"],
        ["limits", "get"],
        ["limits", "get", "alice", "--plan", "free"],
        ["limits", "delete", "alice", "--default"],
        ["limits", "set"],
        ["limits", "set", "alice"],
        ["limits", "set", "--default"],
        ["up", "--workers", "0"],
        ["nothing"],
    ],
    ids=" ".join,
)
def test_command_with_invalid_arguments_ends_with_2(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "alice"],
        ["status"],
        ["reset", "alice"],
        ["usage", "alice"],
        ["limits", "list"],
        ["limits", "set", "a", "1/day"],
        ["bench", "--quick"],
        ["watch"],
    ],
    ids=" ".join,
)
def test_command_without_a_gateway_ends_with_one_line_and_3(arguments: list[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = run(*arguments, STOPLOG_URL=url)
    assert done.exit_code == 3
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"no gateway answers at {url}" in done.stderr
    assert "stoplog up" in done.stderr
    assert "--url" in done.stderr


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://127.0.0.1", "http://127.0.0.1:99999"])
def test_command_with_an_invalid_url_ends_with_3(url: str) -> None:
    done = run("status", "--url", url)
    assert done.exit_code == 3
    assert f"no gateway answers at {url}" in done.stderr


def test_command_with_a_gateway_that_closes_the_connection_ends_with_3() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=lambda: server.accept()[0].close()).start()
        done = run("status", "--url", f"http://127.0.0.1:{server.getsockname()[1]}")
    assert done.exit_code == 3
    assert "no gateway answers" in done.stderr


class Canned(BaseHTTPRequestHandler):
    """Answers every request with the same response."""

    response: tuple[int, bytes] = (200, b"")
    authorization: str | None = None

    def do_DELETE(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        Canned.authorization = self.headers["Authorization"]
        status, body = self.response
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing into the output of a test."""


@pytest.fixture
def canned() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Canned) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_command_with_another_server_asks_whether_it_is_a_gateway(
    canned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Canned, "response", (200, b"<html>"))
    done = run("status", "--url", canned)
    assert done.exit_code == 3
    assert "is it a Stoplog gateway?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["limits", "delete", "nobody"], ["client nobody: nothing to delete", "client nobody: deleted"]),
        (["reset", "nobody"], ["nobody: nothing to reset", "nobody: counters reset"]),
    ],
)
def test_change_of_an_unknown_client_says_that_there_was_nothing(
    canned: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str], texts: list[str]
) -> None:
    answer = {"kind": "client", "id": "nobody", "resource": None, "limits": None, "applied": True}
    for existed, text in ((False, texts[0]), (True, texts[1]), (None, texts[1])):
        monkeypatch.setattr(Canned, "response", (200, json.dumps({**answer, "existed": existed}).encode()))
        done = run(*arguments, "--url", canned)
        assert (done.exit_code, done.stdout) == (0, f"{text}\n")


def test_history_shows_each_change_once_over_pages(canned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change = {
        "change": "set",
        "resource": None,
        "limits": ["9/minute", "90/hour"],
        "policy_version": 41,
        "previous_limits": "unlimited",
        "previous_version": 12,
        "at_ms": 1_764_457_200_000,
        "who": "ops\x1b[31m",
        "address": "10.0.0.7",
        "request_id": None,
        "position": 7,
    }
    pages = iter([("2", [change]), ("1", [change, {**change, "position": 6, "change": "reset"}]), (None, [])])

    class Paged(Canned):
        @property
        def response(self) -> tuple[int, bytes]:  # type: ignore[override]
            after, items = next(pages)
            return 200, json.dumps({"items": items, "next": after}).encode()

    monkeypatch.setattr(Canned, "response", Paged.response)
    done = run("limits", "history", "alice", "--json", "--url", canned)
    assert [item["position"] for item in json.loads(done.stdout)] == [7, 6]
    pages = iter([(None, [change])])
    shown = run("limits", "history", "alice", "--url", canned).stdout
    for text in ("9/minute, 90/hour", "unlimited", "ops", "10.0.0.7", "41"):
        assert text in shown
    assert "\x1b" not in shown
    pages = iter([(None, [change])])
    assert run("limits", "history", "alice", "--url", canned, COLUMNS="20").stdout == shown
    pages = iter([(None, [])])
    assert run("limits", "history", "--default", "--url", canned).stdout == "no change is recorded\n"


def test_refused_command_shows_detail_and_remedy(canned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = {
        "title": "A title",
        "detail": "alice[bold]: wrong",
        "field": "client_id",
        "remedy": "repair it",
    }
    monkeypatch.setattr(Canned, "response", (422, json.dumps(problem).encode()))
    done = run("limits", "get", "alice", "--json", "--url", canned)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr == "stoplog: A title: alice[bold]: wrong; repair it\n"


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        (UNAUTHORIZED, "--token-file or STOPLOG_TOKEN_FILE"),
        (FORBIDDEN, "--url http://127.0.0.1:<port>"),
        (NO_LIMITS, "set some with `stoplog limits set`"),
        (UNAVAILABLE, "`stoplog status`"),
    ],
    ids=lambda value: value.name if isinstance(value, Kind) else "",
)
def test_refused_command_replaces_the_remedy_for_programs(
    canned: str, monkeypatch: pytest.MonkeyPatch, kind: Kind, shown: str
) -> None:
    body = msgspec.json.encode(problem(kind, "refused", "client_id", "for programs"))
    monkeypatch.setattr(Canned, "response", (kind.status, body))
    done = run("limits", "get", "alice", "--url", canned)
    assert done.exit_code == 1
    assert shown in done.stderr
    assert "for programs" not in done.stderr


def test_command_without_kafka_ends_with_one_line_and_1(monkeypatch: pytest.MonkeyPatch) -> None:
    soon = partial(ensure_reachable, timeout_s=0.1)
    monkeypatch.setattr(stoplog_gateway.cli.bench, "ensure_reachable", soon)
    monkeypatch.setattr(stoplog_gateway.cli.topics, "ensure_reachable", soon)
    for arguments in (["topics", "create"], ["topics", "verify"], ["bench", "--sdk"]):
        kafka = f"127.0.0.1:{free_port()}"
        done = run(*arguments, STOPLOG_KAFKA=kafka)
        assert done.exit_code == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert f"no Kafka answers at {kafka}" in done.stderr
        assert "`stoplog broker`" in done.stderr


@pytest.mark.parametrize("id_", ["user[admin]x", "x[/red]", "[red]", "a\\\\[b]", ":smile:", "zoë"])
def test_id_is_shown_unchanged(canned: str, monkeypatch: pytest.MonkeyPatch, id_: str) -> None:
    assert_shown(canned, monkeypatch, id_, id_)


@pytest.mark.parametrize(
    ("id_", "shown"),
    [
        ("\x1b[2Ja\x07", r"\x1b[2Ja\x07"),
        ("\x9b31mx", r"\x9b31mx"),
        ("eve\u202e\u2066", r"eve\u202e\u2066"),
        ("a\r\nb", r"a\r\nb"),
    ],
)
def test_id_with_control_characters_is_shown_with_escapes(
    canned: str, monkeypatch: pytest.MonkeyPatch, id_: str, shown: str
) -> None:
    assert_shown(canned, monkeypatch, id_, shown)


def assert_shown(canned: str, monkeypatch: pytest.MonkeyPatch, id_: str, shown: str) -> None:
    """Check that the commands print *shown* for each *id_* in an answer."""
    stored = {"kind": "client", "id": id_, "resource": id_, "limits": [id_], "policy_version": 1}
    monkeypatch.setattr(Canned, "response", (200, json.dumps(stored).encode()))
    assert run("limits", "get", id_, "--url", canned).stdout == f"client {shown} {shown}: {shown}\n"

    page = {"items": [stored], "next": None}
    monkeypatch.setattr(Canned, "response", (200, json.dumps(page).encode()))
    assert run("limits", "list", "--url", canned).stdout.count(shown) == 3

    partitions = {"0": {"state": id_, "lag": 0}}
    node = {"id": id_, "role": id_, "lane": id_, "version": id_, "partitions": partitions}
    status = {"mode": "normal", "why": id_, "since_ms": 0, "store": id_, "store_why": id_, "nodes": [node]}
    status |= {"processes": 1, "degraded_processes": 0}
    monkeypatch.setattr(Canned, "response", (200, json.dumps(status).encode()))
    done = run("status", "--url", canned)
    assert done.exit_code == 0
    assert done.stdout.count(shown) == 8


def test_usage_shows_each_limit_and_what_is_held(canned: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = {
        "client_id": "alice",
        "plan": "gold\x1b",
        "resource": "login",
        "held_to": {"kind": "plan", "id": "gold\x1b", "resource": "login"},
        "policy_version": 41,
        "windows": [
            {"limit": "10000/minute", "used": 6_045, "reset_after_ms": 97_000, "held": 6_000},
            {"limit": "10 in flight", "used": 2, "reset_after_ms": 36_000, "held": 2},
        ],
        "holds": {
            "reservations": {"open": 2, "units": 5_999, "next_end_ms": 12_000},
            "leases": {"open": 1, "units": 1, "next_end_ms": 1_900},
        },
    }
    monkeypatch.setattr(Canned, "response", (200, json.dumps(usage).encode()))
    done = run("usage", "alice", "--plan", "gold", "--resource", "login", "--url", canned)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == r"alice: the limits of plan gold\x1b apply, for resource login"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows == [
        ["10000/minute", "3,955", "45", "6,000", "1 min 37 s"],
        ["10 in flight", "8", "0", "2", "36 s"],
    ]
    assert lines[-1] == (
        "held: 2 open reservations with 5,999 units, the next one ends in 12 s; "
        "1 open lease with 1 unit, it ends in 2 s"
    )
    assert json.loads(run("usage", "alice", "--json", "--url", canned).stdout) == usage


def test_usage_from_a_gateway_of_an_earlier_release_says_nothing_about_holds(
    canned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = {"held_to": None, "windows": [{"limit": "100/minute", "used": 60, "reset_after_ms": 0}]}
    monkeypatch.setattr(Canned, "response", (200, json.dumps(usage).encode()))
    done = run("usage", "alice", "--url", canned)
    assert done.exit_code == 0
    assert "the built-in default applies" in done.stdout
    assert "held:" not in done.stdout
    monkeypatch.setattr(Canned, "response", (200, json.dumps({**usage, "windows": []}).encode()))
    assert "unlimited: no check is counted" in run("usage", "alice", "--url", canned).stdout


def test_status_when_degraded_shows_how_many_processes_and_checks(
    canned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = {
        "mode": "degraded",
        "why": "no reply",
        "since_ms": 0,
        "store": "ok",
        "store_why": None,
        "nodes": [],
    }
    status |= {"processes": 3, "degraded_processes": 2}
    status |= {"degraded_partitions": [0, 1], "let_through": 5_120, "uncounted": 7}
    monkeypatch.setattr(Canned, "response", (200, json.dumps(status).encode()))
    done = run("status", "--url", canned)
    assert done.exit_code == 0
    mode, cost, store = done.stdout.splitlines()[:3]
    assert mode.endswith(" (2 of 3 processes): no reply")
    assert cost.strip() == "failing open: partitions 0-1; so far 5,120 checks, 7 of them never counted"
    assert store == "store  ok"


def completions(line: str) -> list[str]:
    """Return the completions at the end of *line*."""
    tab = {"_STOPLOG_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    return CliRunner().invoke(app, [], prog_name="stoplog", env=tab).stdout.split()


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("stoplog check{} al", ["albert", "alice"]),
        ("stoplog reset{} al", ["albert", "alice"]),
        ("stoplog limits get{} al", ["albert", "alice"]),
        ("stoplog limits delete{} al", ["albert", "alice"]),
        ("stoplog limits set{} al", ["albert", "alice"]),
        ("stoplog limits set{} --plan ali", ["alice"]),
        ("stoplog limits set{} alice 1", ["1/second", "1/minute", "1/hour", "1/day"]),
        ("stoplog limits set{} alice 1/day 25/m", ["25/minute"]),
        ("stoplog limits set{} --plan free u", ["unlimited"]),
        ("stoplog limits set{} --default ", ["100/second", "100/minute", "100/hour", "100/day", "unlimited"]),
        ("stoplog check{} zoe --plan ali", ["alice"]),
        ("stoplog check{} zoe --resource lo", ["login"]),
    ],
)
def test_completion_offers_names_with_limits(
    canned: str, monkeypatch: pytest.MonkeyPatch, line: str, names: list[str]
) -> None:
    stored = [
        {"id": "alice", "resource": "login", "limits": ["1/day"]},
        {"id": "albert", "resource": None, "limits": "unlimited"},
        {"id": "alfred", "resource": "logout", "limits": None},
        {"id": "al$(reboot)", "resource": "lo;reboot", "limits": ["1/day"]},
        {"id": None, "resource": None, "limits": ["1/day"]},
    ]
    monkeypatch.setattr(Canned, "response", (200, json.dumps({"items": stored, "next": None}).encode()))
    monkeypatch.setenv("STOPLOG_TOKEN", "correct horse")
    monkeypatch.setattr(Canned, "authorization", None)
    assert completions(line.format(f" --url {canned}")) == names
    asked = {"alice", "albert", "login"} >= set(names)  # limits need no request
    assert Canned.authorization == ("Bearer correct horse" if asked else None)


@pytest.mark.parametrize("answer", [(503, b"{}"), (200, b"<html>"), (200, b"{}")])
def test_completion_without_an_answer_offers_nothing(
    canned: str, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, bytes]
) -> None:
    monkeypatch.setattr(Canned, "response", answer)
    assert completions(f"stoplog check --url {canned} al") == []
    assert completions(f"stoplog check --url http://127.0.0.1:{free_port()} al") == []
    assert completions("stoplog ben") == ["bench"]


def test_command_with_an_invalid_setting_names_the_variable() -> None:
    done = run("topics", "create", STOPLOG_BROKER_PORT="0")
    assert done.exit_code == 2
    assert "STOPLOG_BROKER_PORT='0'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_gateway_with_an_unusable_tokens_file_ends_with_2_and_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("# ours\nshop check secret\n")
    done = run("gateway", STOPLOG_TOKENS_FILE=str(path), STOPLOG_PORT="0")
    assert done.exit_code == 2
    assert f"{path}, line 2: " in done.stderr
    assert "secret" not in done.stderr
    done = run("gateway", STOPLOG_CHECK_TOKEN="required", STOPLOG_PORT="0")
    assert done.exit_code == 2
    assert "STOPLOG_TOKENS_FILE" in done.stderr


def test_gateway_with_the_admin_token_of_earlier_releases_ends_with_2_and_names_the_remedy() -> None:
    done = run("gateway", STOPLOG_ADMIN_TOKEN="correct horse", STOPLOG_PORT="0")
    assert done.exit_code == 2
    assert "stoplog tokens add" in done.stderr
    assert "correct horse" not in done.stderr
