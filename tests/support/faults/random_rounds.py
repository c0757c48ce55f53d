"""A random order that leaves nothing out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def random_rounds(items: Sequence[T], seed: int) -> Iterator[T]:
    """Yield all of *items* in a random order, then all of them in another one, and so on, without end."""
    choice = random.Random(seed)
    while True:
        yield from choice.sample(items, len(items))
