"""The commands that call a gateway, against a running system."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.support.terminal import CTRL_C, terminal
from tests.support.up import Running, stoplog, stoplog_up

Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with stoplog_up(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def run(running: Running) -> Run:
    def run(*arguments: str) -> CompletedProcess[str]:
        return stoplog(*arguments, env={**running.env, "STOPLOG_URL": running.url})

    return run


def json_of(done: CompletedProcess[str]) -> Any:
    """Return the JSON that a command printed; it may print nothing else."""
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_check_is_allowed_until_the_limit_is_reached(run: Run) -> None:
    assert run("limits", "set", "alice", "2/hour").stdout == "client alice: 2/hour\n"

    assert run("check", "alice", "--cost", "0").stdout == "allowed: 2 of 2 left\n"
    assert run("check", "alice").stdout == "allowed: 1 of 2 left\n"
    allowed = run("check", "alice", "--json")
    assert (allowed.returncode, json_of(allowed)["remaining"]) == (0, 0)

    denied = run("check", "alice")
    assert denied.returncode == 1
    assert denied.stdout.startswith("denied: limit 2, try again in ")
    denied = run("check", "alice", "--json")
    assert (denied.returncode, json_of(denied)["allowed"]) == (1, False)

    assert run("check", "alice", "--cost", "3").stdout == "denied: the limit is 2, and waiting cannot help\n"
    usage = run("usage", "alice").stdout
    assert usage.startswith("alice: its own limits apply\n")
    assert usage.endswith("held: nothing\n")
    [window] = json_of(run("usage", "alice", "--json"))["windows"]
    assert (window["limit"], window["used"]) == ("2/hour", 2)
    assert run("reset", "alice").stdout == "alice: counters reset\n"
    assert run("check", "alice").stdout == "allowed: 1 of 2 left\n"


def test_limits_of_plans_resources_and_the_default_apply(run: Run) -> None:
    assert run("limits", "set", "--plan", "free", "3/hour", "2/minute").stdout == (
        "plan free: 3/hour, 2/minute\n"
    )
    assert run("limits", "set", "--default", "7/hour", "--resource", "login").returncode == 0
    assert json_of(run("check", "bob", "--plan", "free", "--json"))["limit"] in (2, 3)
    assert json_of(run("check", "bob", "--resource", "login", "--json"))["limit"] == 7
    assert run("limits", "set", "zoë/ü", "unlimited").stdout == "client zoë/ü: unlimited\n"
    assert run("check", "zoë/ü").stdout == "allowed: unlimited\n"

    assert json_of(run("limits", "get", "--plan", "free", "--json"))["limits"] == ["3/hour", "2/minute"]
    listed = json_of(run("limits", "list", "--json"))
    assert {(item["kind"], item["id"], item["resource"]) for item in listed} >= {
        ("plan", "free", None),
        ("default", None, "login"),
        ("client", "zoë/ü", None),
    }
    assert "3/hour, 2/minute" in run("limits", "list").stdout

    assert run("limits", "delete", "zoë/ü").stdout == "client zoë/ü: deleted\n"
    missing = run("limits", "get", "zoë/ü")
    assert missing.returncode == 1
    assert "has no limits of its own; set some with `stoplog limits set`" in missing.stderr


def test_limits_set_with_an_invalid_limit_names_the_field(run: Run) -> None:
    refused = run("limits", "set", "alice", "10/0s")
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "limits[0]: a window of 0 ms; a window is 1 second to 31 days" in refused.stderr


def test_completion_offers_clients_with_limits(running: Running, run: Run) -> None:
    assert run("limits", "set", "tabitha", "5/day").returncode == 0
    tab = {"_STOPLOG_COMPLETE": "complete_bash", "COMP_WORDS": "stoplog limits get tab", "COMP_CWORD": "3"}
    assert stoplog(env={**running.env, "STOPLOG_URL": running.url, **tab}).stdout == "tabitha\n"


@pytest.mark.parametrize("way", [[], ["--sdk"]], ids=["gateway", "kafka"])
def test_bench_reports_what_was_answered(run: Run, way: list[str]) -> None:
    done = run("bench", "--quick", "--callers", "4", "--json", *way)
    measured = json_of(done)
    assert measured["callers"] == 4
    assert 2 <= measured["seconds"] < 10
    answered = measured["allowed"] + measured["denied"] + measured["degraded"]
    assert measured["checks"] == answered > 100
    assert measured["checks_per_s"] == pytest.approx(answered / measured["seconds"], rel=0.01)
    assert 0 < measured["p50_ms"] <= measured["p99_ms"] <= measured["p99_9_ms"]
    # Workers decided and counted the checks.
    assert measured["allowed"] == answered
    assert json_of(run("check", "stoplog-bench-0", "--cost", "0", "--json"))["remaining"] < 100


def test_status_shows_mode_nodes_and_partitions(run: Run) -> None:
    status = json_of(run("status", "--json"))
    assert (status["mode"], status["store"]) == ("normal", "ok")
    assert {node["role"] for node in status["nodes"]} == {"worker", "gateway"}

    text = run("status").stdout
    assert "mode   normal since" in text
    assert "running 0" in text


def test_watch_shows_the_gateway_and_restores_the_terminal(running: Running, run: Run) -> None:
    assert run("limits", "set", "mallory", "0/minute").returncode == 0
    assert run("check", "mallory").returncode == 1
    with terminal("watch", "--interval", "0.2", "--url", running.url, env=running.env) as tty:
        shown = tty.wait_for("NORMAL", "running 0", "in all", "mallory")
        assert running.url in shown
        tty.press(CTRL_C)
        assert tty.ended() == 0
        assert tty.as_before

    seen = json_of(run("watch", "--interval", "0.2", "--json"))
    assert seen["rates"]["allowed_per_s"] >= 0
    assert "mallory" in [item["client_id"] for item in seen["rejected"]["items"]]


def test_second_gateway_on_the_same_port_is_refused(running: Running, run: Run) -> None:
    taken = run("gateway")
    assert taken.returncode == 2
    assert f"port {running.env['STOPLOG_PORT']} is taken" in taken.stderr
    assert taken.stderr.count("\n") == 1


def test_second_broker_on_the_same_home_is_refused(run: Run) -> None:
    taken = run("broker")
    assert taken.returncode == 1
    assert "a broker is already running" in taken.stderr
    assert taken.stderr.count("\n") == 1


def test_up_writes_one_log_per_process(running: Running) -> None:
    assert sorted(path.name for path in Path(running.home, "logs").iterdir()) == [
        "gateway-1.log",
        "kafka.log",
        "kafka.out",
        "worker-1.log",
    ]
