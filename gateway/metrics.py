"""The gateway's metrics."""

from __future__ import annotations

from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Metrics:
    """Counts of one gateway, and the registry that shows them; other parts may register theirs in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def render(self) -> bytes:
        """The page of ``/metrics``; its type is :data:`CONTENT_TYPE`."""
        return generate_latest(self.registry)
