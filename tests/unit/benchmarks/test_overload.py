"""The figures of the overload benchmark."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.overload.context import Row
from tests.benchmarks.overload.figures import (
    AT_ONCE,
    DECIDED,
    DEGRADED,
    FAILED,
    REFUSED_503,
    Latency,
    flood_of,
    kind_of,
    latency_of,
)
from tests.benchmarks.overload.open_loop import Result
from tests.benchmarks.overload.run import main, table


def result(status: int, *reasons: str | None, seconds: float = 0.01, at_s: float = 1.0) -> Result:
    answers = [{"allowed": True, "degraded": reason is not None, "reason": reason} for reason in reasons]
    body = json.dumps(answers, separators=(",", ":")).encode() if reasons else b""
    return Result(at_s, status, seconds, "" if status else "connection reset", body)


@pytest.mark.parametrize(
    ("one", "kind"),
    [
        (result(200, None), DECIDED),
        (result(429, None), DECIDED),
        (result(200, "overload"), AT_ONCE),
        (result(200, "deadline"), DEGRADED),
        (result(200, None, "overload"), AT_ONCE),
        (result(503), REFUSED_503),
        (result(0), FAILED),
        (result(500), FAILED),
    ],
)
def test_request_has_the_kind_of_its_response(one: Result, kind: str) -> None:
    assert kind_of(one) == kind


def test_flood_counts_requests_checks_and_errors() -> None:
    results = [
        result(200, None, None, at_s=10.0),
        result(200, None, "overload", at_s=12.0, seconds=0.03),
        result(503, at_s=11.0),
        result(0, at_s=11.0),
    ]
    flood = flood_of(results)
    assert (flood.sent, flood.seconds, flood.last_s) == (4, 2.0, 12.0)
    assert flood.checks == (3, 1)
    assert flood.errors == {"connection reset": 1}
    assert flood.rate(REFUSED_503) == 0.5
    assert flood.rate(DEGRADED) == 0.0
    assert flood.kinds[AT_ONCE] == Latency(1, 30.0, 30.0, 30.0)


def test_latency_is_that_of_the_percentiles() -> None:
    assert latency_of([0.2, 0.1, *[0.001] * 98]) == Latency(100, 1.0, 100.0, 200.0)


def test_table_marks_a_missed_target() -> None:
    rows = [Row("wrk", "p99", "9 ms", "< 1 ms", False), Row("wrk", "offered", "9/s")]
    assert table(rows).splitlines()[2:] == [
        "| wrk | p99 | 9 ms | < 1 ms | **missed** |",
        "| wrk | offered | 9/s |  |  |",
    ]


def test_unknown_stage_is_named_with_those_that_exist() -> None:
    with pytest.raises(SystemExit, match="unknown stage check: use checks, wrk, storm"):
        main(["check"])
