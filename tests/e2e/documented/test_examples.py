"""The examples, run as users run them, against a real broker, worker and gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from stoplog_gateway.ports import free_port

from tests.support.broker import CHECKOUT
from tests.support.java import compile_java, java, kafka_scripts
from tests.support.system import Process, System, eventually

EXAMPLES = CHECKOUT / "examples"


def environment(system: System) -> dict[str, str]:
    return {
        **os.environ,
        "STOPLOG_KAFKA": system.bootstrap,
        "STOPLOG_URL": system.gateways[0].url,
        "STOPLOG_TOKEN_FILE": str(system.folder / "token"),
        "STOPLOG_DEADLINE_MS": "10000",
    }


def limit(system: System, client: str, resource: str, *limits: str) -> None:
    response = system.gateways[0].http.put(
        f"/v1/limits/{client}", params={"resource": resource}, json={"limits": limits}
    )
    assert response.json()["applied"], response.text


def run(system: System, *command: str | Path, path: Path | None = None) -> list[str]:
    """Return the lines that *command* prints; it must succeed."""
    env = environment(system)
    if path is not None:
        env["PATH"] = f"{path}{os.pathsep}{env['PATH']}"
    done = subprocess.run(
        list(map(str, command)), env=env, cwd=CHECKOUT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_every_example_is_run_here_and_linked_from_the_readme() -> None:
    readme, tests = (CHECKOUT / "README.md").read_text(), Path(__file__).read_text()
    names = [path.name for path in EXAMPLES.iterdir() if path.is_file()]
    assert len(names) == 8
    for name in names:
        assert f"(examples/{name})" in readme
        assert name.removesuffix(".py") in tests


def test_check_async_with_a_limit_of_three_does_three_jobs(system: System) -> None:
    limit(system, "async", "jobs", "3/day")
    assert run(system, sys.executable, EXAMPLES / "check_async.py", "async") == [
        "job 1: done; 2 of 3 left",
        "job 2: done; 1 of 3 left",
        "job 3: done; 0 of 3 left",
        "job 4: over the limit of 3",
        "job 5: over the limit of 3",
    ]


def test_check_sync_with_a_limit_of_seven_sends_seven_messages(system: System) -> None:
    limit(system, "sync", "messages", "7/day")
    printed = run(system, sys.executable, EXAMPLES / "check_sync.py", "sync")
    assert printed == ["7 sent, 3 held back, 0 left"]


def test_llm_tokens_charges_what_was_streamed_and_denies_what_does_not_fit(system: System) -> None:
    limit(system, "model", "tokens", "1000/hour")

    def ask(max_tokens: int, length: int) -> list[str]:
        return run(system, sys.executable, EXAMPLES / "llm_tokens.py", "model", str(max_tokens), str(length))

    assert ask(500, 120) == ["500 tokens reserved, 500 left", "120 tokens used", "880 left"]
    assert ask(700, 900) == ["700 tokens reserved, 180 left", "700 tokens used", "180 left"]
    [denied] = ask(181, 1)
    assert denied.startswith("no answer now: the reservation was denied: the client's limits do not allow it")


def test_downloads_in_flight_are_bounded_and_only_bytes_that_were_sent_are_charged(system: System) -> None:
    limit(system, "files", "downloads", "100000/hour", "2 in flight")

    def download(downloads: int, size: int) -> list[str]:
        example = EXAMPLES / "downloads.py"
        return run(system, sys.executable, example, "files", str(downloads), str(size))

    too_many = "not now: 2 reservations are open, and the limit is 2 in flight: settle one of them first"
    assert download(3, 30_000) == [
        "download 1: 30000 bytes sent",
        "download 2: 30000 bytes sent",
        f"download 3: {too_many}",
        "40000 bytes left",
    ]
    first, second, left = download(2, 25_000)  # both places are free again, but not so many bytes are left
    assert first == "download 1: 25000 bytes sent"
    assert second.startswith("download 2: not now: the reservation was denied: the client's limits do not")
    assert left == "15000 bytes left"


@pytest.mark.needs("curl")
def test_check_sh_with_a_limit_of_two_is_denied_after_two_calls(system: System) -> None:
    system.gateways[0].set_limits("curl", "2/day")
    assert run(system, EXAMPLES / "check.sh", "curl") == ["call 1", "call 2", "denied after 2 calls"]


def allowed_and_remaining(line: str) -> tuple[bool, int]:
    answer = json.loads(line)
    return answer["allowed"], answer["remaining"]


def test_publish_checks_java_prints_the_reply_to_each_check(system: System, tmp_path: Path) -> None:
    system.gateways[0].set_limits("java", "2/day")
    compile_java(EXAMPLES / "PublishChecks.java", tmp_path)
    answers = run(system, *java(tmp_path), "PublishChecks", system.bootstrap, "java")
    assert [allowed_and_remaining(line) for line in answers] == [(True, 1), (True, 0), (False, 0)]


def test_publish_sh_prints_the_reply_to_each_check(system: System, tmp_path: Path) -> None:
    system.gateways[0].set_limits("console", "2/day")
    kafka_scripts(tmp_path)
    answers = run(system, EXAMPLES / "publish.sh", "console", "3", path=tmp_path)
    assert [allowed_and_remaining(line) for line in answers] == [(True, 1), (True, 0), (False, 0)]


@pytest.fixture
def app(system: System, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of the web application, which is a process of its own."""
    port = free_port()
    process = Process(
        "app",
        [sys.executable, "-m", "uvicorn", "examples.app:app", "--port", str(port)],
        env={**environment(system), "PYTHONPATH": str(CHECKOUT)},
        log=tmp_path / "app.log",
    )
    process.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            eventually("app", lambda: bool(process.lines("Uvicorn running")), on_failure=process.tail)
            yield client
    finally:
        process.stop()
    assert process.lines("Application shutdown complete"), process.tail()


def test_app_limits_all_requests_of_a_key_and_its_reports(system: System, app: httpx.Client) -> None:
    system.gateways[0].set_limits("web", "4/day")
    limit(system, "web", "reports", "5/day")
    key = {"X-API-Key": "web"}

    allowed = app.post("/reports", headers=key)
    assert (allowed.status_code, allowed.json()) == (200, {"left_for_reports": 3})
    assert allowed.headers["ratelimit"].startswith('"default";r=3;t=')
    assert app.post("/reports", headers=key).json() == {"left_for_reports": 1}
    denied = app.post("/reports", headers=key)  # 1 is left, and a report costs 2
    assert (denied.status_code, denied.headers["ratelimit"].split(";")[1]) == (429, "r=1")

    books = app.get("/books", headers=key)
    assert books.headers["ratelimit"].startswith('"default";r=0;t=')
    denied = app.get("/books", headers=key)
    assert denied.status_code == 429
    assert denied.json()["detail"] == "the limit of 4 is used up"
    assert int(denied.headers["retry-after"]) > 0
    # Other keys have limits of their own. A request without a key is not limited.
    assert app.get("/books", headers={"X-API-Key": "another"}).status_code == 200
    assert app.get("/books").status_code == 200
    # The gateway and the application count in one place.
    assert system.gateways[0].check("web", cost=0)["remaining"] == 0
