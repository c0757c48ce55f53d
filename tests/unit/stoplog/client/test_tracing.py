"""Spans of checks and of batches, and none without sampling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.types import Receive, Scope, Send
from stoplog_gateway.http.tracing import RequestTracing

from stoplog.client.tracing import MAX_LINKS, OpenTelemetryInstrumentation
from stoplog.tracing import context_from
from stoplog.wire.checks import Check
from tests.support.clockwork import Bench, answer_to

TRACES: Final = [bytes(f"00-{number:032x}-00000000000000aa-01", "ascii") for number in range(1, 201)]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter
    provider.shutdown()


@contextmanager
def caller(traceparent: bytes) -> Iterator[None]:
    token = contexts.attach(context_from({"traceparent": traceparent}) or contexts.Context())
    yield
    contexts.detach(token)


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


def context_of(span: ReadableSpan) -> trace.SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def traces(found: list[ReadableSpan]) -> list[int]:
    return [context_of(span).trace_id for span in found]


def test_check_and_its_batch_belong_to_the_callers_trace(spans: InMemorySpanExporter) -> None:
    bench = Bench(instrumentation=OpenTelemetryInstrumentation())
    with caller(TRACES[4]):
        bench.batcher.ask(Check("secret-key", 2))
    bench.loop.turn()
    (record,) = bench.transport.records
    assert record is not None
    record.done(None)
    bench.batcher.on_replies([answer_to(bench.transport.last)])
    bench.loop.turn()
    (check,), (publish,) = named(spans, "stoplog.check"), named(spans, "stoplog.publish")
    assert traces([check, publish]) == [5, 5]
    assert publish.parent is not None
    assert publish.parent.span_id == context_of(check).span_id
    header = dict(record.headers)["traceparent"].decode()
    assert header == f"00-{5:032x}-{context_of(publish).span_id:016x}-01"
    assert check.attributes is not None
    assert (check.attributes["stoplog.allowed"], check.attributes["stoplog.degraded"]) == (True, False)
    assert not any("secret" in span.to_json() for span in spans.get_finished_spans())


def test_batch_links_to_the_checks_of_other_callers(spans: InMemorySpanExporter) -> None:
    bench = Bench(instrumentation=OpenTelemetryInstrumentation())
    for traceparent in TRACES:
        with caller(traceparent):
            bench.batcher.ask(Check("alice"))
    bench.loop.turn()
    record = bench.transport.records[-1]
    assert record is not None
    record.done("the broker is gone")
    (publish,) = named(spans, "stoplog.publish")
    assert traces([publish]) == [1]
    assert [link.context.trace_id for link in publish.links] == [*range(2, 2 + MAX_LINKS)]
    assert publish.status.status_code is StatusCode.ERROR
    assert publish.status.description == "the broker is gone"


def test_batch_without_sampled_check_has_no_header(spans: InMemorySpanExporter) -> None:
    bench = Bench(instrumentation=OpenTelemetryInstrumentation())
    with caller(TRACES[0][:-2] + b"00"):
        bench.batcher.ask(Check("alice"))
        bench.batcher.publish(Check("alice"))
    bench.loop.turn()
    assert bench.transport.records == [None, None]
    assert not spans.get_finished_spans()


def test_span_of_unpublished_batch_ends_with_error(spans: InMemorySpanExporter) -> None:
    bench = Bench(instrumentation=OpenTelemetryInstrumentation())
    bench.transport.broken = True
    with caller(TRACES[0]):
        bench.batcher.ask(Check("alice"))
    bench.loop.turn()
    assert named(spans, "stoplog.publish")[0].status.description == "queue full"
    (check,) = named(spans, "stoplog.check")
    assert check.attributes is not None
    assert (check.attributes["stoplog.degraded"], check.attributes["stoplog.reason"]) == (True, "unpublished")


def test_check_without_answer_continues_the_callers_trace(spans: InMemorySpanExporter) -> None:
    bench = Bench(instrumentation=OpenTelemetryInstrumentation())
    with caller(TRACES[6]):
        bench.batcher.publish(Check("alice"))
    bench.loop.turn()
    record = bench.transport.records[-1]
    assert record is not None
    record.done(None)
    assert traces(named(spans, "stoplog.publish")) == [7]
    assert not named(spans, "stoplog.check")


def test_batch_without_instrumentation_has_no_header() -> None:
    bench = Bench()
    with caller(TRACES[0]):
        bench.batcher.ask(Check("alice"))
    bench.loop.turn()
    assert bench.transport.records == [None]


async def test_request_is_served_in_its_callers_trace_sampled_or_not() -> None:
    seen: list[trace.SpanContext] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(trace.get_current_span().get_span_context())

    for headers in ([(b"traceparent", TRACES[8])], [(b"traceparent", TRACES[8][:-2] + b"00")], []):
        # A server may handle a request in the context of the previous one, whose trace is then current.
        with caller(TRACES[5]):
            await RequestTracing().wrap(app)({"type": "http", "headers": headers}, _nothing, _nothing)
    assert [(context.trace_id, context.trace_flags.sampled) for context in seen] == [
        (9, True),
        (9, False),
        (0, False),
    ]
    assert not trace.get_current_span().get_span_context().is_valid


async def _nothing(*_: Any) -> Any:
    raise AssertionError
