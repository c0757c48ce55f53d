"""Compare the responses of the fast path and of the routes, byte by byte."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stoplog_gateway.access.control import AccessControl
from stoplog_gateway.envoy.mapping import DescriptorMapping
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.proxies import Proxies
from stoplog_gateway.http.turns import Turns
from stoplog_gateway.settings import GatewaySettings

import stoplog.client.engine
from stoplog.client.limiter import Limiter
from stoplog.identity.identity import Identity
from tests.support.fake_kafka import Kafka
from tests.support.protocol_connection import Request, respond_once, respond_to_stream, status_of


def whole_fast_path(
    limiter: Limiter,
    access: AccessControl | None = None,
    mapping: DescriptorMapping | None = None,
    *,
    legacy: bool = False,
    identity: Identity | None = None,
    turns: Turns | None = None,
) -> FastPath:
    """Return a fast path with all its parts, as a gateway has it."""
    access, mapping = access or AccessControl(), mapping or DescriptorMapping()
    turns = turns or Turns()
    proxies = Proxies(
        limiter,
        access,
        turns,
        mapping,
        client_header="X-Client-Id",
        identity=identity,
        legacy_headers=legacy,
    )
    return FastPath(limiter, access=access, turns=turns, proxies=proxies, legacy_headers=legacy)


def compare_with_routes(
    monkeypatch: pytest.MonkeyPatch,
    access: AccessControl,
    requests: st.SearchStrategy[Request],
    cases: Sequence[Request],
    parseable: st.SearchStrategy[Request],
    *,
    mapping: DescriptorMapping | None = None,
    legacy: bool,
    identity: Mapping[str, str] | None = None,
    examples: int = 250,
) -> tuple[set[tuple[str, int]], set[bytes]]:
    """Send arbitrary requests to the routes, alone and with the fast path in front of them.

    Both must send the same bytes and publish the same checks.

    Args:
        monkeypatch: Replaces the transport to Kafka.
        access: Decides about each request.
        requests: Requests that are sent alone.
        cases: Requests that are sent in any case.
        parseable: Requests without a syntax error, which are sent in streams.
        mapping: Mapping of Envoy's descriptors; by default, that of a gateway without a mapping file.
        legacy: Send the ``X-RateLimit-*`` header fields too.
        identity: Settings of client identity.
        examples: Number of requests that are sent alone.

    Returns:
        The path of each request with the status of its response, and the names of all header fields.
    """
    monkeypatch.setattr(stoplog.client.engine, "KafkaTransport", Kafka)
    gateway_settings = GatewaySettings(legacy_headers=legacy, **(identity or {}))  # type: ignore[arg-type]
    limiter = Limiter(gateway_settings)
    mapping = mapping or DescriptorMapping(identity=Identity.of(gateway_settings))
    routes = create_app(gateway_settings, limiter, access)
    routes.state.mapping = mapping
    fast_path = whole_fast_path(
        limiter, access, mapping, legacy=legacy, identity=Identity.of(gateway_settings)
    )
    counted = limiter.metrics
    seen = set()
    fields: set[bytes] = set()

    with asyncio.Runner() as runner:
        runner.run(limiter.__aenter__())
        log: Kafka = limiter._engine.transport  # type: ignore[assignment]

        @given(requests)
        @settings(max_examples=examples)
        def compare(request: Request) -> None:
            log.checks, counted.blocked, counted.exempt = [], 0, 0
            expected = runner.run(respond_once(routes, request))
            outcome = (log.checks, counted.blocked, counted.exempt)
            log.checks, counted.blocked, counted.exempt = [], 0, 0
            assert runner.run(respond_once(routes, request, fast_path)) == expected
            assert (log.checks, counted.blocked, counted.exempt) == outcome, (request, outcome, log.checks)
            seen.add((request.path, status_of(expected)))
            fields.update(line.partition(b":")[0] for line in expected.split(b"\r\n"))

        for case in cases:
            compare = example(case)(compare)
        compare()

        @given(st.lists(parseable, min_size=2, max_size=4), st.data())
        @settings(max_examples=examples * 3 // 5)
        def compare_streams(requests: list[Request], data: st.DataObject) -> None:
            stream = b"".join(b"".join(request.data()) for request in requests)
            cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=4).map(sorted))
            pieces = [stream[at:to] for at, to in pairwise([0, *cuts, len(stream)]) if at < to]
            outcomes = []
            for path in (None, fast_path):
                log.checks = []
                outcomes.append((runner.run(respond_to_stream(routes, path, pieces)), log.checks))
            assert outcomes[0] == outcomes[1]

        compare_streams()
        runner.run(limiter.__aexit__(None, None, None))
    return seen, fields
