"""A gateway's spans: ``stoplog.check`` from asked to answered, ``stoplog.publish`` from sent to acknowledged.

A batch carries the checks of many callers, and its record one trace: that of the first sampled check in it,
whose span is the parent of the batch's; it links the others. A batch without a sampled check has neither span
nor header, so whoever samples one check in a thousand pays for those.

No span names a client: ids may be secrets.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode

from stoplog.client.answer import Answer, Outcome
from stoplog.client.batcher import Batcher, Carried
from stoplog.client.in_flight import PendingBatch
from stoplog.partitioning import partition_of
from stoplog.topics import CHECKS
from stoplog.tracing import context_from, headers_to
from stoplog.wire.checks import Check

MAX_LINKS: Final = 127
"""What OpenTelemetry keeps of a span's links, less the parent."""


class TracedBatcher(Batcher):
    """A batcher that tells of checks and batches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tracer = trace.get_tracer("stoplog.gateway")
        self._asking: dict[int, list[SpanContext]] = {}
        """The sampled checks of batches not yet sent, by number."""

    def ask(self, check: Check) -> Future[Outcome] | Answer:
        """As a batcher does; the span is a child of the caller's current one."""
        span = self._tracer.start_span("stoplog.check", attributes={"stoplog.cost": check.cost})
        outcome = super().ask(check)
        queue = self._queue_of(check)
        self._note(queue.filling, check, span.get_span_context())
        if isinstance(outcome, Answer):
            _end(span, outcome)
        else:
            span.set_attribute("messaging.destination.partition.id", str(queue.index))
            outcome.add_done_callback(lambda future: _end_future(span, future))
        return outcome

    def publish(self, check: Check) -> None:
        """As a batcher does; the batch's span goes on with the caller's current one."""
        super().publish(check)
        self._note(self._queue_of(check).silent, check, trace.get_current_span().get_span_context())

    def _queue_of(self, check: Check) -> Any:
        return self._queues[partition_of(check.client, self._partitions)]

    def _note(self, batch: PendingBatch | None, check: Check, context: SpanContext) -> None:
        # Not all checks get into a batch: some denials need none, and an overload none either.
        if context.trace_flags.sampled and batch is not None and batch.checks[-1] is check:
            self._asking.setdefault(batch.number, []).append(context)

    def _carried(self, batch: PendingBatch) -> Carried | None:
        asking = self._asking.pop(batch.number, None)
        if asking is None:
            return None
        first, *others = asking
        return _Publishing(
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


class _Publishing:
    """A batch under way to the broker."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self.headers = headers_to(span)

    def done(self, error: str | None) -> None:
        """The broker has it, or never will; any thread."""
        if error is not None:
            self._span.set_status(StatusCode.ERROR, error)
        self._span.end()


def _end_future(span: Span, future: Future[Outcome]) -> None:
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
def going_on(fields: Mapping[str, bytes]) -> Iterator[None]:
    """Spans that begin in the block go on with the trace that *fields*, as of a header, name, or none."""
    # One that names none begins its own: what is current may be that of whoever came before it.
    token = contexts.attach(context_from(fields) or contexts.Context())
    try:
        yield
    finally:
        contexts.detach(token)
