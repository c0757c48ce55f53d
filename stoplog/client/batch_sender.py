"""Turn a batch into a record of ``checks`` and hand it to the transport."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from stoplog.client.fail_open import UNPUBLISHED
from stoplog.client.in_flight import InFlight
from stoplog.client.instrumentation import Instrumentation, PublishedRecord
from stoplog.client.lease_cache import LeaseCache
from stoplog.client.metrics import Metrics
from stoplog.client.pending_batch import HoldCall, PendingBatch
from stoplog.errors import Unavailable
from stoplog.wire.checks import Batch, encode_batch
from stoplog.wire.format import NO_REPLY
from stoplog.wire.holds import HoldRow


class CheckTransport(Protocol):
    """The part of the transport that publishes batches."""

    incarnation: int
    reply_partition: int

    def send_checks(
        self, partition: int, value: bytes, number: int, checks: int, record: PublishedRecord | None = None
    ) -> None:
        """Publish a batch without blocking. A later failure is reported to :meth:`Batcher.on_undelivered`.

        Raises:
            Unavailable: The batch will not be published.
        """


class BatchSender:
    """Publishes batches, and counts those that could not be published.

    Args:
        transport: Publishes the records.
        in_flight: Keeps the batches that await a reply.
        leases: Returns what batches ask and settle.
        metrics: Counts batches and failures.
        instrumentation: Observes each batch that is sent, if given.
        clock: Returns seconds.
    """

    def __init__(
        self,
        transport: CheckTransport,
        in_flight: InFlight,
        leases: LeaseCache,
        metrics: Metrics,
        instrumentation: Instrumentation | None,
        clock: Callable[[], float],
    ) -> None:
        self._transport = transport
        self._in_flight = in_flight
        self._leases = leases
        self._metrics = metrics
        self._instrumentation = instrumentation
        self._clock = clock

    def send(self, batch: PendingBatch) -> bool:
        """Publish *batch* and expect a reply. Return whether that succeeded; if not, its checks fail open."""
        batch.sent_at = self._clock()
        self._in_flight.add(batch)
        rows, batch.asks = self._leases.rows(
            batch.partition, batch.checks, batch.marked, bool(batch.futures), batch.holds
        )
        if batch.holds and rows is not None:
            rows = _with_holds(rows, batch.holds)
        if self._publish(batch, self._transport.reply_partition, rows):
            return True
        self._leases.abandon(batch.asks)
        self._in_flight.take(batch.number)
        batch.cancel_timer()
        batch.degrade(UNPUBLISHED, self._metrics, self._clock())
        return False

    def send_without_reply(self, batch: PendingBatch) -> None:
        """Publish *batch*; no worker replies to it."""
        self._publish(batch, NO_REPLY, _with_holds((), batch.holds) if batch.holds else None)

    def _publish(self, batch: PendingBatch, reply_partition: int, rows: list[HoldRow] | None) -> bool:
        checks = len(batch.checks)
        incarnation = self._transport.incarnation
        value = encode_batch(Batch(reply_partition, incarnation, batch.number, batch.checks, rows))
        record = None if self._instrumentation is None else self._instrumentation.on_send(batch)
        try:
            self._transport.send_checks(batch.partition, value, batch.number, checks, record)
        except Unavailable as exc:
            if record is not None:
                record.done(str(exc))
            self._metrics.publish_failures += 1
            self._metrics.uncounted += checks
            return False
        if checks:
            self._metrics.batches.observe(checks)
        return True


def _with_holds(rows: Iterable[HoldRow], holds: Mapping[int, HoldCall]) -> list[HoldRow]:
    """Return *rows*, which are about leases, and those of *holds*."""
    merged = {row.index: row for row in rows}
    for index, call in holds.items():
        before = merged[index].settlements if index in merged else ()
        merged[index] = HoldRow(index, call.ask, (*before, *call.settlements))
    return [merged[index] for index in sorted(merged)]
