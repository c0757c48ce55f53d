"""The client of each check. Standard library only: the peers' environment imports this module."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

SCATTER: Final = 625_341_585
"""Odd, so that no two clients share an id. Small enough for the doubles of ``wrk.lua``."""


def client_id(number: int) -> str:
    """Return the id of client *number*.

    All ids have one length, so all bodies have too. Consecutive numbers give ids that lie far apart, because
    ids in order would reach RocksDB presorted, unlike those of real clients.
    """
    return f"c{number * SCATTER & 0xFFFFFFFF:08x}"


def picker(clients: int, distribution: str, seed: int = 0) -> Callable[[], int]:
    """Return a function that draws a number below *clients*: ``uniform``, ``zipf``, or ``each`` in turn.

    Zipf's law has the exponent 1: the thousandth client sends a thousand times fewer checks than the first.
    It is drawn by inverting its continuous form, which needs no tables. The first client gets 7.5 % of the
    checks of 10,000 clients, instead of 10.2 %.
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
    return lambda: int((clients + 1) ** uniform()) - 1
