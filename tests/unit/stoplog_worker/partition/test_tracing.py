"""The spans of a partition."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition import tracing
from stoplog_worker.partition.partition import Partition
from stoplog_worker.partition.tracing import PartitionTracing
from stoplog_worker.settings import Settings

from stoplog.wire.checks import Batch, Check, encode_batch
from stoplog.wire.partition_count import PartitionCount
from tests.support.ledgers import FIRST_MARKER
from tests.support.memory_store import MemoryStore
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS
from tests.support.records import Message
from tests.support.relay import alone, unkeyed

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = [("traceparent", f"00-{TRACE}-b7ad6b7169203331-01".encode())]
NOT_SAMPLED = [("traceparent", f"00-{TRACE}-b7ad6b7169203331-00".encode())]
BATCH = encode_batch(Batch(0, 7, 1, [Check(CLIENTS[0]), Check(CLIENTS[0])]))


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    return exporter


def replies_to(folder: Path, message: Message, tracing: PartitionTracing | None) -> int:
    """Have a partition take *message*; return the number of its replies."""
    replies: list[bytes] = []
    producers: Any = SimpleNamespace(
        changelogs={},
        reply=lambda _partition, value: replies.append(value),
        write_changelog=print,
        relay_update=print,
        publish_update=print,
        truncate_changelog=print,
    )
    settings, store = Settings(home=folder), MemoryStore(PARTITION)
    partition = Partition(
        settings,
        PartitionCount(PARTITIONS),
        store,
        FIRST_MARKER,
        producers,
        Metrics(),
        keys=unkeyed(),
        workers=alone(),
        tracing=tracing,
    )
    partition.take(message)
    return len(replies)


def test_sampled_record_has_a_span_for_judging_and_one_for_the_reply(
    tmp_path: Path, exporter: InMemorySpanExporter
) -> None:
    assert replies_to(tmp_path, Message(4, BATCH, headers=SAMPLED), PartitionTracing()) == 1
    reply, judge = exporter.get_finished_spans()
    assert (judge.name, reply.name) == ("stoplog.judge", "stoplog.reply")
    assert {f"{span.context.trace_id:032x}" for span in (judge, reply)} == {TRACE}
    assert reply.parent is not None
    assert reply.parent.span_id == judge.context.span_id
    assert dict(judge.attributes or {}) == {
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.destination.name": "checks",
        "messaging.destination.partition.id": str(PARTITION),
        "messaging.kafka.offset": 4,
        "messaging.batch.message_count": 2,
    }


@pytest.mark.parametrize("headers", [None, [], NOT_SAMPLED])
def test_record_without_sampled_trace_has_no_span_and_is_answered(
    tmp_path: Path, exporter: InMemorySpanExporter, headers: Any
) -> None:
    assert replies_to(tmp_path, Message(0, BATCH, headers=headers), PartitionTracing()) == 1
    assert exporter.get_finished_spans() == ()


def test_partition_without_tracing_answers_a_sampled_record_without_a_span(
    tmp_path: Path, exporter: InMemorySpanExporter
) -> None:
    assert replies_to(tmp_path, Message(0, BATCH, headers=SAMPLED), None) == 1
    assert exporter.get_finished_spans() == ()
