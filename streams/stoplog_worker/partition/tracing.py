"""A worker's spans: ``stoplog.judge`` for a record, and ``stoplog.reply`` within it.

The worker traces only records whose headers name a sampled trace: a gateway's batches, and checks that
another producer published with a ``traceparent``. Every other record costs a look at its headers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from stoplog.topics import CHECKS, REPLIES
from stoplog.tracing import context_of

_tracer = trace.get_tracer("stoplog.worker")


class PartitionTracing:
    """The spans of all partitions. A partition holds it only while ``STOPLOG_TRACING`` is on."""

    def judging(self, partition: int, message: Any) -> AbstractContextManager[object]:
        """Return the span of judging *message*, a record of ``checks``."""
        context = context_of(message)
        if context is None:
            return nullcontext()
        attributes = {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.destination.name": CHECKS,
            "messaging.destination.partition.id": str(partition),
            "messaging.kafka.offset": message.offset(),
        }
        return _tracer.start_as_current_span(
            "stoplog.judge", context=context, kind=SpanKind.CONSUMER, attributes=attributes
        )

    def replying(self, checks: int) -> AbstractContextManager[object]:
        """Return the span of answering the record that is being judged, with its number of *checks*."""
        judging = trace.get_current_span()
        if not judging.is_recording():
            return nullcontext()
        judging.set_attribute("messaging.batch.message_count", checks)
        attributes = {
            "messaging.system": "kafka",
            "messaging.operation.type": "send",
            "messaging.destination.name": REPLIES,
        }
        return _tracer.start_as_current_span("stoplog.reply", kind=SpanKind.PRODUCER, attributes=attributes)
