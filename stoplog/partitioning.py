"""The partition of a client, a plan or the default. Every producer of ``checks`` must agree on it."""

from __future__ import annotations

from typing import Final

from murmurhash2 import murmurhash2

_SEED: Final = 0x9747B28C
"""Seed of Kafka's Java client."""


def partition_of(client: str, partitions: int) -> int:
    """Return the partition of *client*: murmur2 of its UTF-8, as Kafka's Java client computes it.

    >>> partition_of("alice", 4), partition_of("zoë", 64)
    (1, 12)
    """
    return int(murmurhash2(client.encode(), _SEED) & 0x7FFFFFFF) % partitions


def home_of(kind: str, id_: str, partitions: int) -> int:
    """Return the partition of ``limit-updates`` that orders the updates of a plan or of the default.

    >>> home_of("default", "", 4), home_of("plan", "gold", 4)
    (1, 2)
    """
    return partition_of(f"{kind}/{id_}", partitions)
