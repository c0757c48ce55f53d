"""Delay attempts to connect to brokers that could not be reached just before.

aiokafka 0.14 has no such delay. Its coordinator, its fetcher and its metadata task each try about ten times a
second, and each failure makes the metadata task try every broker at once. Without a broker, that took twice
the CPU of an idle worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final

_FIRST_S: Final = 0.05
_MAX_S: Final = 0.5
"""Longest delay. The worker answers checks without the group, which finds the broker this much later."""


class ReconnectBackoff:
    """Passes aiokafka's attempts to connect on to its client, at most twice a second from each task.

    Args:
        client: aiokafka's client, whose attempts are intercepted.
    """

    def __init__(self, client: Any) -> None:
        self._get_connection: Callable[..., Awaitable[Any]] = client._get_conn
        self._delays: dict[Any, float] = {}
        self._next_attempt: dict[Any, float] = {}
        client._get_conn = self.connect

    async def connect(self, node: Any, **options: Any) -> Any:
        """Return a connection to the broker *node*, or ``None`` if it cannot be reached."""
        # Tasks that wait for the same broker try at the same time, so a success ends the wait of all.
        if (delay := self._next_attempt.get(node, 0.0) - monotonic()) > 0:
            await asyncio.sleep(delay)
        connection = await self._get_connection(node, **options)
        if connection is not None:
            self._delays.pop(node, None)
            self._next_attempt.pop(node, None)
        elif (now := monotonic()) >= self._next_attempt.get(node, 0.0):
            delay = self._delays[node] = min(2 * self._delays.get(node, _FIRST_S / 2), _MAX_S)
            self._next_attempt[node] = now + delay
        return connection
