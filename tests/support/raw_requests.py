"""The corpus of raw byte sequences that a connection can receive, with the responses that they must get.

Each line of ``raw_requests.txt`` has three fields, separated by `` | ``: a name, the statuses of the final
responses in order, and the bytes as in a Python literal.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final, NamedTuple

_FILE: Final = Path(__file__).with_name("raw_requests.txt")


class RawRequests(NamedTuple):
    """A sequence of bytes that one connection receives."""

    name: str
    statuses: list[int]
    data: bytes


def load_corpus() -> list[RawRequests]:
    """Return the corpus."""
    lines = (line.split(" | ", 2) for line in _FILE.read_text().splitlines())
    return [
        RawRequests(name, [int(status) for status in statuses.split()], ast.literal_eval(f"b'{data}'"))
        for name, statuses, data in lines
    ]
