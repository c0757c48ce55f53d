"""How much a caller waits for others: idle connections, a long list, a client with most of the traffic."""

from __future__ import annotations

import http.client
import json
import resource
import socket
import time
from contextlib import ExitStack
from typing import Final

from stoplog.partitioning import partition_of
from tests.benchmarks.client_ids import client_id
from tests.benchmarks.cpu import rss_mb
from tests.benchmarks.overload.context import Context
from tests.benchmarks.overload.figures import Latency, latency_of
from tests.benchmarks.overload.open_loop import Attack

_IDLE: Final = 10_000
_LIST: Final = 10_000
_RATE: Final = 500.0
_PROBE_S: Final = 10
_LIST_DELAY_MS: Final = 20.0
_HOT_S: Final = 10
_HOT_SHARE: Final = 0.9


def _probe(context: Context, name: str, seconds: int = _PROBE_S) -> Attack:
    return context.attack(name, _RATE, seconds)


def _latency(attack: Attack) -> Latency:
    return latency_of([one.seconds for one in attack.results()])


def idle_connections(context: Context) -> None:
    """Compare a caller's latency without and with idle connections, and the memory that they take."""
    stage = f"{_IDLE:,} idle connections"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < _IDLE + 1_000:
        context.add(stage, f"not measured: `ulimit -Hn` is {hard:,}", "")
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    address = ("127.0.0.1", context.gateway.port)
    _latency(_probe(context, "warm"))
    without, before_mb = _latency(_probe(context, "without")), rss_mb([context.pid])
    with ExitStack() as stack:
        began = time.monotonic()
        while_opening = _probe(context, "opening")
        for _ in range(_IDLE):
            stack.enter_context(socket.create_connection(address))
        opened_s = time.monotonic() - began
        opening = _latency(while_opening)
        open_now = context.gateway.metric("stoplog_http_connections")
        with_mb, beside = rss_mb([context.pid]), _latency(_probe(context, "beside"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    after = _latency(_probe(context, "after"))
    for what, latency in (("without", without), ("beside them", beside), ("after them", after)):
        context.add(stage, f"p50 and p99 of another caller {what}", _text(latency))
    context.add(stage, f"the same while they open, in {opened_s:.1f} s", _text(opening))
    context.add(
        stage,
        "p99 beside them, less that without",
        f"{beside.p99_ms - without.p99_ms:.1f} ms",
        f"<= {_LIST_DELAY_MS:g} ms",
        met=beside.p99_ms - without.p99_ms <= _LIST_DELAY_MS,
    )
    context.add(
        stage,
        "memory without, with, after; for each",
        f"{before_mb:.0f}, {with_mb:.0f}, {rss_mb([context.pid]):.0f} MB; "
        f"{(with_mb - before_mb) * 1e3 / open_now:.1f} kB",
    )


def long_list(context: Context) -> None:
    """Compare other callers' latency without and beside a list of 10,000 checks, again and again."""
    stage = f"list of {_LIST:,} checks"
    body = json.dumps([{"client_id": client_id(number)} for number in range(_LIST)]).encode()
    connection = http.client.HTTPConnection("127.0.0.1", context.gateway.port, timeout=60)
    _latency(_probe(context, "warm"))
    spans = []
    attacks = {
        "/healthz": context.attack("healthz", _RATE / 2, 2 * _PROBE_S, path="/healthz"),
        "a check": context.attack("check", _RATE / 2, 2 * _PROBE_S),
    }
    time.sleep(_PROBE_S)
    began_lists = time.time()
    for _ in range(10):
        began = time.time()
        connection.request("POST", "/v1/checks", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answers = response.read().count(b'"degraded":false')
        assert response.status == 200, response.status
        spans.append((began, time.time()))
        time.sleep(0.5)
    connection.close()
    context.add(stage, "decided of the last list", f"{answers:,}")
    took = latency_of([end - began for began, end in spans])
    context.add(stage, "time of a list: p50, p99, max", _text(took))
    for what, attack in attacks.items():
        results = list(attack.results())
        alone = latency_of([one.seconds for one in results if one.at_s < began_lists - 1])
        beside = latency_of(
            [
                one.seconds
                for one in results
                if any(began <= one.at_s + one.seconds and one.at_s <= end for began, end in spans)
            ]
        )
        context.add(stage, f"{what} of another caller without: p50, p99, max", _text(alone))
        context.add(stage, f"{what} of another caller meanwhile", _text(beside))
        delay_ms = beside.p99_ms - alone.p99_ms
        context.add(
            stage,
            f"{what}: p99 meanwhile, less that without",
            f"{delay_ms:.1f} ms",
            f"<= {_LIST_DELAY_MS:g} ms",
            met=delay_ms <= _LIST_DELAY_MS,
        )


def hot_client(context: Context) -> None:
    """Report how long other clients wait beside one that sends 90 % of the checks."""
    partitions = context.stoplog.partitions
    hot = client_id(0)
    same = partition_of(hot, partitions)
    clients = [client_id(number) for number in range(1, 5_000)]
    groups = {
        "clients of its partition": [c for c in clients if partition_of(c, partitions) == same],
        "clients of other partitions": [c for c in clients if partition_of(c, partitions) != same],
    }
    for limit, what in (("100000000/minute", "within its limit"), ("100/minute", "limit used up")):
        context.gateway.set_limits(hot, limit)
        for rate in (500, 2_000):
            stage = f"one client with 90 % of {rate:,}/s, {what}"
            attacks = {
                "that client": _group(context, "hot", [hot], rate * _HOT_SHARE),
                **{
                    name: _group(context, f"group{number}", ids, rate * (1 - _HOT_SHARE) / 2)
                    for number, (name, ids) in enumerate(groups.items())
                },
            }
            for name, attack in attacks.items():
                results = list(attack.results())
                degraded = sum(b'"degraded":true' in one.body for one in results)
                context.add(
                    stage,
                    name,
                    _text(latency_of([one.seconds for one in results])) + f"; {degraded:,} failed open",
                )


def _group(context: Context, name: str, clients: list[str], rate: float) -> Attack:
    return Attack(
        f"{context.gateway.url}/v1/check",
        [b'{"client_id":"%s"}' % client.encode() for client in clients],
        rate=rate,
        seconds=_HOT_S,
        folder=context.folder,
        name=name,
    )


def _text(latency: Latency) -> str:
    return f"{latency.p50_ms:.1f}, {latency.p99_ms:.1f}, {latency.max_ms:.1f} ms"
