"""OpenTelemetry's instrumentation: a span for each check and a span for each published batch.

``stoplog.check`` lasts from the check to its answer, ``stoplog.publish`` from the sending of a batch to the
broker's acknowledgment.

A batch carries the checks of many callers, but its record carries one trace: the trace of the first sampled
check in it. The span of that check is the parent of the batch's span, which links to the other sampled
checks. A batch without a sampled check has neither a span nor a header, so sampling one check in a thousand
costs a thousandth.

No span names a client, because client ids may be secrets.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode

from stoplog.client.answer import Answer, Outcome
from stoplog.client.instrumentation import PublishedRecord
from stoplog.client.pending_batch import PendingBatch
from stoplog.topics import CHECKS
from stoplog.tracing import context_from, trace_headers
from stoplog.wire.checks import Check

MAX_LINKS: Final = 127
"""The number of links that OpenTelemetry keeps in a span, less one for the parent."""


class OpenTelemetryInstrumentation:
    """Implements :class:`~stoplog.client.instrumentation.Instrumentation`.

    The span of a check is a child of its caller's current span.
    """

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("stoplog.gateway")
        self._sampled: dict[int, list[SpanContext]] = {}
        """The sampled checks of batches not yet sent, by batch number."""

    def on_answer(self, check: Check, answer: Answer, batch: PendingBatch | None) -> None:
        """Record a check that was answered at once."""
        _end(self._begin(check, batch), answer)

    def on_wait(self, check: Check, future: Future[Outcome], batch: PendingBatch) -> None:
        """Begin the span of a check, which ends when *future* is done."""
        span = self._begin(check, batch)
        span.set_attribute("messaging.destination.partition.id", str(batch.partition))
        future.add_done_callback(partial(_end_with_future, span))

    def on_publish_only(self, batch: PendingBatch) -> None:
        """Have the record of *batch* continue the caller's current trace."""
        self._remember(batch, trace.get_current_span().get_span_context())

    def on_send(self, batch: PendingBatch) -> PublishedRecord | None:
        """Begin the span of *batch*, if it contains a sampled check."""
        sampled = self._sampled.pop(batch.number, None)
        if sampled is None:
            return None
        first, *others = sampled
        return _TracedRecord(
            self._tracer.start_span(
                "stoplog.publish",
                context=trace.set_span_in_context(trace.NonRecordingSpan(first), contexts.Context()),
                kind=SpanKind.PRODUCER,
                links=[Link(other) for other in others[:MAX_LINKS]],
                attributes={
                    "messaging.system": "kafka",
                    "messaging.operation.type": "send",
                    "messaging.destination.name": CHECKS,
                    "messaging.destination.partition.id": str(batch.partition),
                    "messaging.batch.message_count": len(batch.checks),
                },
            )
        )

    def _begin(self, check: Check, batch: PendingBatch | None) -> Span:
        span = self._tracer.start_span("stoplog.check", attributes={"stoplog.cost": check.cost})
        if batch is not None:
            self._remember(batch, span.get_span_context())
        return span

    def _remember(self, batch: PendingBatch, context: SpanContext) -> None:
        if context.trace_flags.sampled:
            self._sampled.setdefault(batch.number, []).append(context)


class _TracedRecord:
    """The record of a batch until the broker acknowledges it."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.headers = trace_headers(span)

    def done(self, error: str | None) -> None:
        """End the span; any thread."""
        if error is not None:
            self._span.set_status(StatusCode.ERROR, error)
        self._span.end()


def _end_with_future(span: Span, future: Future[Outcome]) -> None:
    _end(span, None if future.cancelled() else future.result())


def _end(span: Span, outcome: Outcome | None) -> None:
    if isinstance(outcome, Answer):
        span.set_attributes(
            {
                "stoplog.allowed": outcome.allowed,
                "stoplog.degraded": outcome.degraded,
                "stoplog.policy_version": outcome.policy_version,
            }
        )
        if outcome.reason is not None:
            span.set_attribute("stoplog.reason", outcome.reason)
    elif outcome is not None:
        span.set_status(StatusCode.ERROR, str(outcome))
    span.end()


@contextmanager
def continued_trace(fields: Mapping[str, bytes]) -> Iterator[None]:
    """Have spans that begin in the block continue the trace that *fields* name, or begin a new trace.

    Args:
        fields: Header fields or metadata, with names in lower case (:data:`stoplog.tracing.FIELDS`).
    """
    # Without a trace in the fields the context is empty: the current one may belong to the previous request.
    token = contexts.attach(context_from(fields) or contexts.Context())
    try:
        yield
    finally:
        contexts.detach(token)
