"""What the broker's metadata says of the topic ``checks``."""

from __future__ import annotations

import msgspec


class BrokerView(msgspec.Struct, frozen=True):
    """What the broker reports of ``checks``; ``partitions`` 0: no such topic; ``error``: no answer, and why."""

    partitions: int = 0
    under_replicated: tuple[int, ...] = ()
    error: str | None = None
