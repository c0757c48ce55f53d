"""Hooks by which an optional instrumentation observes checks and batches.

The batcher holds one :class:`Instrumentation`, or ``None``. Without one, a check costs one more comparison
with ``None``. :mod:`stoplog.client.tracing` implements the hooks with OpenTelemetry.
"""

from __future__ import annotations

from asyncio import Future
from typing import Protocol

from stoplog.client.answer import Answer, Outcome
from stoplog.client.pending_batch import PendingBatch
from stoplog.wire.checks import Check


class PublishedRecord(Protocol):
    """The additions of an instrumentation to the record of one batch."""

    headers: list[tuple[str, bytes]]
    """Headers of the record."""

    def done(self, error: str | None) -> None:
        """Note that a broker acknowledged the record, or the *error* that prevented it.

        This is called in any thread.
        """


class Instrumentation(Protocol):
    """Observes checks and batches. Every hook runs in the event loop."""

    def on_answer(self, check: Check, answer: Answer, batch: PendingBatch | None) -> None:
        """Observe a check that was answered at once.

        Args:
            check: The check.
            answer: Its answer.
            batch: The batch that publishes the check; ``None`` if it is not published.
        """

    def on_wait(self, check: Check, future: Future[Outcome], batch: PendingBatch) -> None:
        """Observe a check that waits for the reply to *batch*; *future* resolves to its outcome."""

    def on_publish_only(self, batch: PendingBatch) -> None:
        """Observe a check that joined *batch* and wants no answer."""

    def on_send(self, batch: PendingBatch) -> PublishedRecord | None:
        """Observe a batch that is about to be published. Return what to add to its record, if anything."""


def load_instrumentation(enabled: bool) -> Instrumentation | None:
    """Return OpenTelemetry's instrumentation if *enabled*, else ``None``.

    Raises:
        SettingsError: The packages of the extra ``tracing`` are missing.
    """
    if not enabled:
        return None
    from stoplog.client.tracing import OpenTelemetryInstrumentation

    return OpenTelemetryInstrumentation()
