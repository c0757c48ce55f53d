from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks.load_paced import busiest_window, requests_for, run
from tests.benchmarks.peers.servers import http_floor

ORDER = {
    "path": "/v1/check",
    "method": "POST",
    "check": ['{"client_id":"', '"}'],
    "clients": 10,
    "seed": 1,
    "rate": 500,
    "warmup": 2,
    "checks": 20,
    "window_s": 60,
}


def test_paced_load_measures_checks_after_the_warm_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with http_floor(tmp_path) as server:
        figures = run({**ORDER, "port": server.port})
    assert capsys.readouterr().out == "begin\nend\n"
    assert figures["checks"] == figures["allowed"] == figures["busiest_window"] == 20
    assert figures["denied"] == 0
    assert figures["seconds"] >= 19 / 500
    assert 0 < figures["p50_ms"] <= figures["p999_ms"]


def test_paced_load_of_another_status_fails(tmp_path: Path) -> None:
    with (
        http_floor(tmp_path) as server,
        pytest.raises(RuntimeError, match=r"expected status 200: http/1\.1 404"),
    ):
        run({**ORDER, "method": "GET", "check": ["", ""], "port": server.port})


def test_requests_have_the_check_where_wrk_puts_it() -> None:
    head, _, body = requests_for({**ORDER, "port": 1})().partition(b"\r\n\r\n")
    assert len(json.loads(body)["client_id"]) == 9
    assert b"Content-Length: %d" % len(body) in head
    text = requests_for({**ORDER, "port": 1, "method": "GET", "check": ["X-Client-Id: ", ""]})()
    assert text.startswith(b"GET /v1/check HTTP/1.1\r\n")
    assert len(text.partition(b"X-Client-Id: ")[2]) == 9 + 4


def test_busiest_window_counts_only_what_is_certainly_within() -> None:
    # The second check was admitted at some time up to 0.4, so it may be in the window of the third or not.
    times = [(0.0, 0.1), (0.2, 0.4), (1.15, 1.3), (5.0, 5.1)]
    assert busiest_window(iter(times), 1.0) == 2
    assert busiest_window(iter(times), 1.1) == 2
    assert busiest_window(iter(times), 1.3) == 3
