"""Arbitrary bytes on an HTTP connection: equal paths, no 5xx, and never more responses than requests."""

from __future__ import annotations

import asyncio
import logging
from random import Random

import pytest

from tests.support.fuzz.http_front import NAME, HttpFront, most_responses
from tests.support.fuzz.runner import SEED, TEST_INPUTS, Violation, found_inputs, run_http, run_http_input

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /v1/check HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"


@pytest.fixture(autouse=True)
def no_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Keep no log lines of refused requests."""
    caplog.set_level(logging.CRITICAL)


@pytest.mark.parametrize(
    ("data", "most"),
    [
        (b"", 0),
        (GET, 1),
        (GET * 3, 3),
        (POST % (len(GET), GET), 1),  # the second one is a body
        (POST % (len(GET) - 1, GET), 3),  # no request follows the body: lines are counted, and one more
        (b"\x16\x03\x01", 1),
    ],
)
def test_requests_are_counted_by_another_parser(data: bytes, most: int) -> None:
    assert most_responses(data) == most


async def test_inputs_that_were_found_violate_nothing() -> None:
    front, places = HttpFront(), Random(SEED)
    for data in found_inputs(NAME):
        for _ in range(10):  # cut at other places each time
            outcome = await run_http_input(front, data, places)
            assert not isinstance(outcome, Violation), str(outcome)


def test_http_front_holds_its_properties_for_arbitrary_bytes() -> None:
    counts: list[tuple[str, int, int]] = []
    print(f"FUZZ_SEED={SEED}")
    violations = asyncio.run(run_http(SEED, TEST_INPUTS, lambda *row: counts.append(row)))
    assert not violations, "\n".join(map(str, [f"FUZZ_SEED={SEED}", *violations[:5]]))
    [(_, inputs, kinds)] = counts
    assert inputs >= 2_000
    assert kinds >= 20, "the inputs get too few kinds of responses"
