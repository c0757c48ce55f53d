"""A worker's spans: ``stoplog.judge`` a record, and within it ``stoplog.reply``.

Only of records whose headers name a sampled trace: a gateway's batches, or a check that any producer
published with a ``traceparent`` of its own. All others cost a look at their headers, and without
``STOPLOG_TRACING`` not even that.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from stoplog.topics import CHECKS, REPLIES
from stoplog.tracing import context_of
from stoplog.wire.checks import Batch, SingleCheck
from stoplog_worker.algorithm.fold import Answer
from stoplog_worker.partition.partition import Partition

_tracer = trace.get_tracer("stoplog.worker")


class TracedPartition(Partition):
    """A partition that tells of its records."""

    def take(self, message: Any) -> None:
        """As any partition does."""
        context = context_of(message)
        if context is None:
            return super().take(message)
        where = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.destination.name": CHECKS,
            "messaging.destination.partition.id": str(self.partition),
            "messaging.kafka.offset": message.offset(),
        }
        with _tracer.start_as_current_span(
            "stoplog.judge", context=context, kind=SpanKind.CONSUMER, attributes=where
        ):
            super().take(message)

    def _answer(self, record: Batch | SingleCheck, answers: list[Answer], offset: int) -> None:
        judging = trace.get_current_span()
        if not judging.is_recording():
            return super()._answer(record, answers, offset)
        judging.set_attribute("messaging.batch.message_count", len(answers))
        where = {
            "messaging.system": "kafka",
            "messaging.operation.type": "send",
            "messaging.destination.name": REPLIES,
        }
        with _tracer.start_as_current_span("stoplog.reply", kind=SpanKind.PRODUCER, attributes=where):
            super()._answer(record, answers, offset)
