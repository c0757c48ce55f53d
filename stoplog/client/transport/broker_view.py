"""The broker's metadata of the topic ``checks``."""

from __future__ import annotations

import msgspec


class BrokerView(msgspec.Struct, frozen=True):
    """The broker's metadata of the topic ``checks``.

    Attributes:
        partitions: Number of partitions; 0 if the topic does not exist.
        under_replicated: Partitions with fewer in-sync replicas than replicas.
        error: Why there is no answer; ``None`` if the broker answered.
    """

    partitions: int = 0
    under_replicated: tuple[int, ...] = ()
    error: str | None = None
