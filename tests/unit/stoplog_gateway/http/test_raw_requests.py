"""Raw byte sequences: never more responses than requests, in order, and equal on both paths."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from stoplog_gateway.http.app import create_app
from stoplog_gateway.settings import GatewaySettings

from tests.support.access import access_control
from tests.support.fake_limiter import FakeLimiter
from tests.support.fast_path_equivalence import whole_fast_path
from tests.support.protocol_connection import (
    echo_app,
    final_statuses,
    respond_to_stream,
    respond_to_streams,
)
from tests.support.raw_requests import RawRequests, load_corpus

CORPUS = load_corpus()
FAMILIES = sorted({raw.name.partition("/")[0] for raw in CORPUS})


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    return [data[at:to] for at, to in pairwise([0, *sorted(cuts), len(data)]) if at < to]


def ways_to_arrive(raw: RawRequests) -> list[list[bytes]]:
    """Return the sequence whole, byte by byte, and cut at a few places that depend on its name only."""
    data, places = raw.data, random.Random(raw.name)
    cuts = [[], list(range(1, len(data))), *([places.randrange(len(data))] for _ in range(3))]
    return [pieces_of(data, each) for each in cuts]


def test_corpus_is_large_and_its_names_are_unique() -> None:
    assert len(CORPUS) >= 200
    assert len({raw.name for raw in CORPUS}) == len({raw.data for raw in CORPUS}) == len(CORPUS)


@pytest.mark.parametrize("family", FAMILIES)
async def test_raw_requests_get_their_responses_in_order_on_both_paths(family: str) -> None:
    limiter = FakeLimiter()
    app = create_app(GatewaySettings(), limiter, access_control())
    experienced = whole_fast_path(limiter)
    for raw in (raw for raw in CORPUS if raw.name.partition("/")[0] == family):
        for pieces in ways_to_arrive(raw):
            fast_path = whole_fast_path(limiter)
            slow = await respond_to_stream(app, None, pieces)
            slow_checks, limiter.checks = limiter.checks, []
            fast = await respond_to_stream(app, fast_path, pieces)
            again = await respond_to_stream(app, experienced, pieces)  # with heads of other sequences
            assert final_statuses(slow) == raw.statuses, (raw.name, pieces, slow)
            assert slow == fast == again, (raw.name, pieces)
            assert limiter.checks == slow_checks * 2
            limiter.checks = []
    assert not limiter.changes, "a request that was hidden in a body changed something"


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    "raw", [raw for raw in CORPUS if raw.name.startswith("pipeline/")], ids=lambda raw: raw.name
)
async def test_pipelines_cut_at_every_byte_get_the_same_responses(raw: RawRequests, fast: bool) -> None:
    fast_path = whole_fast_path(FakeLimiter()) if fast else None
    # Where a request ends does not depend on the application. This one is quick, and shows what it received.
    whole = await respond_to_stream(echo_app, fast_path, [raw.data])
    # The longest pipelines repeat a few requests twenty times.
    cuts = [*range(1, min(len(raw.data), 500)), *range(500, len(raw.data), 13)]
    responses = await respond_to_streams(echo_app, fast_path, [pieces_of(raw.data, [cut]) for cut in cuts])
    assert [cut for cut, response in zip(cuts, responses, strict=True) if response != whole] == []
