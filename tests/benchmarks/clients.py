"""Which client asks next. Standard library only: peers' environments import it too."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

ZIPF: Final = 1.1
"""The exponent: the thousandth client asks 2,000 times less often than the first."""


SCATTER: Final = 625_341_585
"""Odd, so that no two clients share an id; small enough for the doubles of ``wrk.lua``."""


def client_id(number: int) -> str:
    """Ids are all of one length, so that bodies are too; neighbors' lie apart, as those of real clients.

    In order they would come to RocksDB presorted, which no client does.
    """
    return f"c{number * SCATTER & 0xFFFFFFFF:08x}"


def picker(clients: int, distribution: str, seed: int = 0) -> Callable[[], int]:
    """Numbers 0 to *clients* - 1: ``uniform``, ``zipf``, or ``each`` in turn.

    Zipf's law is drawn by inverting its continuous form, exact enough for a load and free of tables.
    """
    if distribution == "each":
        turn = -1

        def each() -> int:
            nonlocal turn
            turn = (turn + 1) % clients
            return turn

        return each
    uniform = random.Random(seed).random
    if distribution == "uniform":
        return lambda: int(uniform() * clients)
    span, power = (clients + 1) ** (1 - ZIPF) - 1, 1 / (1 - ZIPF)
    return lambda: int((1 + uniform() * span) ** power) - 1
