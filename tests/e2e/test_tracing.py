"""One trace through real processes, from the API caller through gateway and worker, received by OTLP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Final, NamedTuple

import grpc
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from stoplog_gateway.envoy.messages import METHOD, SERVICE, RateLimitRequest
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_gateway.ports import free_port

from stoplog.partitioning import partition_of
from stoplog.topics import CHECKS
from stoplog.wire.format import headers_of
from tests.support import raw
from tests.support.system import System, eventually, running_system

PARTITIONS: Final = 4
CALLER: Final = "b7ad6b7169203331"
"""Id of the API caller's span."""


class Span(NamedTuple):
    service: str
    name: str
    trace: str
    id: str
    parent: str
    links: list[str]
    attributes: dict[str, Any]


@dataclass
class Collector:
    """A receiver of OTLP on loopback, in place of an OpenTelemetry collector."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            (service,) = (
                a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
            )
            for scope in resource.scope_spans:
                self.spans += [
                    Span(
                        service,
                        it.name,
                        it.trace_id.hex(),
                        it.span_id.hex(),
                        it.parent_span_id.hex(),
                        [link.trace_id.hex() for link in it.links],
                        {a.key: getattr(a.value, a.value.WhichOneof("value") or "") for a in it.attributes},
                    )
                    for it in scope.spans
                ]

    def trace(self, number: int) -> dict[str, Span]:
        """Return the spans of one trace, by name."""
        return {span.name: span for span in self.spans if span.trace == f"{number:032x}"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield collector
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def envoy() -> str:
    """Return the address of the tracing gateway's Envoy service."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def system(
    collector: Collector, envoy: str, fresh_kafka: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with running_system(fresh_kafka, tmp_path_factory.mktemp("traced"), workers=0, gateways=0) as system:
        system.add_worker(tracing=True, env=env)
        system.add_gateway(tracing=True, env=env, envoy=envoy, deny_cache=0, deadline_ms=5_000)
        system.add_gateway(deadline_ms=5_000)
        system.wait_ready()
        yield system


def check(system: System, client: str, number: int, *, sampled: bool = True, gateway: int = 0) -> None:
    """Send one check over HTTP, as a caller with a trace."""
    traceparent = f"00-{number:032x}-{CALLER}-{sampled:02x}"
    answer = system.gateways[gateway].http.post(
        "/v1/check", json={"client_id": client}, headers={"traceparent": traceparent}
    )
    assert answer.json()["degraded"] is False


def headers_at_end(system: System, client: str) -> list[tuple[str, bytes]] | None:
    """Return the headers of the last record in the partition of *client*."""
    place = TopicPartition(CHECKS, partition_of(client, PARTITIONS))
    consumer = Consumer({"bootstrap.servers": system.bootstrap, "group.id": "headers"})
    try:
        _, end = consumer.get_watermark_offsets(place, timeout=30)
        consumer.assign([TopicPartition(place.topic, place.partition, end - 1)])
        message = consumer.poll(30)
        assert message is not None
        assert message.error() is None
        return headers_of(message)
    finally:
        consumer.close()


def test_check_is_one_trace_from_caller_to_reply(system: System, collector: Collector) -> None:
    check(system, "alice", 1)
    names = {"stoplog.check", "stoplog.publish", "stoplog.judge", "stoplog.reply"}
    eventually("the trace has four spans", lambda: collector.trace(1).keys() == names)
    spans = collector.trace(1)
    path = [spans[f"stoplog.{name}"] for name in ("check", "publish", "judge", "reply")]
    assert [span.parent for span in path] == [CALLER, *(span.id for span in path[:-1])]
    assert [span.service for span in path] == ["stoplog-gateway"] * 2 + ["stoplog-worker"] * 2
    partition = str(partition_of("alice", PARTITIONS))
    assert {span.attributes["messaging.destination.partition.id"] for span in path[:3]} == {partition}
    assert path[0].attributes["stoplog.allowed"] is True


def test_envoy_request_continues_its_trace(system: System, collector: Collector, envoy: str) -> None:
    request = RateLimitRequest(domain="edge", descriptors=[{"entries": [{"key": "user", "value": "grace"}]}])
    with grpc.insecure_channel(envoy) as channel:
        should_rate_limit: Any = channel.unary_unary(f"/{SERVICE}/{METHOD}")
        should_rate_limit(
            request.SerializeToString(), metadata=[("traceparent", f"00-{7:032x}-{CALLER}-01")], timeout=30
        )
    eventually("the trace has four spans", lambda: len(collector.trace(7)) == 4)
    assert collector.trace(7)["stoplog.check"].parent == CALLER


def test_batch_of_several_callers_is_linked_to_all_traces(system: System, collector: Collector) -> None:
    numbers = range(100, 140)
    with ThreadPoolExecutor(len(numbers)) as pool:
        list(pool.map(lambda number: check(system, "bob", number), numbers))
    wanted = {f"{number:032x}" for number in numbers}

    def published() -> set[str]:
        found = [it for it in collector.spans if it.name == "stoplog.publish" and it.trace in wanted]
        return {trace for span in found for trace in (span.trace, *span.links)}

    eventually("every trace is the parent of its batch, or linked to it", lambda: published() == wanted)


def test_unsampled_check_leaves_no_span(system: System, collector: Collector) -> None:
    check(system, "carol", 2, sampled=False)
    assert not headers_at_end(system, "carol")
    check(system, "carol", 3)
    assert dict(headers_at_end(system, "carol") or ())["traceparent"].startswith(b"00-%032x-" % 3)
    eventually("the sampled trace has four spans", lambda: len(collector.trace(3)) == 4)
    assert not collector.trace(2)


def test_record_without_tracing_has_no_headers(system: System, collector: Collector) -> None:
    check(system, "dave", 4, gateway=1)
    assert not headers_at_end(system, "dave")


def test_published_check_continues_producer_trace(system: System, collector: Collector) -> None:
    producer = Producer({"bootstrap.servers": system.bootstrap, "partitioner": "murmur2_random"})
    value = json.dumps({"client_id": "erin", "cost": 3}).encode()
    producer.produce(CHECKS, value, b"erin", headers={"traceparent": f"00-{5:032x}-{CALLER}-01"})
    assert producer.flush(10) == 0
    eventually("the trace has the worker's span", lambda: "stoplog.judge" in collector.trace(5))
    assert collector.trace(5)["stoplog.judge"].parent == CALLER


def test_check_with_unreadable_trace_header_is_judged(system: System) -> None:
    partition = partition_of("frank", PARTITIONS)
    # CPython specializes calls that it has made often. The specialized call validates less.
    valid = [
        raw.record(None, b'{"client_id": "frank", "cost": 0}', [(b"fine", b"x")], at) for at in range(200)
    ]
    odd = raw.record(None, b'{"client_id": "frank", "cost": 3}', [(b"\xff\xfe", b"x")], len(valid))
    batch = raw.batch(b"".join([*valid, odd]), len(valid) + 1)
    assert raw.produce(system.bootstrap, CHECKS, partition, batch) == 0
    eventually(
        "the check is counted",
        lambda: bool(system.gateways[0].check("frank", cost=0)["remaining"] == 97),
        on_failure=system.logs,
    )


def test_spans_of_all_requests_contain_no_client_id(system: System, collector: Collector) -> None:
    clients = ("alice", "bob", "carol", "dave", "erin", "frank", "grace")
    for client in clients:
        assert system.gateways[0].http.get(f"/v1/clients/{client}/usage").status_code == 200
    check(system, "alice", 6)
    eventually("all earlier spans are exported", lambda: "stoplog.check" in collector.trace(6))
    for client in clients:
        assert client not in repr(collector.spans)
