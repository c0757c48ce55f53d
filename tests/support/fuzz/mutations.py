"""Mutations of valid examples: of their bytes, and of the tree that JSON or msgpack bytes describe."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

import msgspec

MAX_BYTES: Final = 1 << 16
"""Longest input. Larger ones would only be slower."""

_INTEGERS: Final = (
    0, 1, 2, -1, 9, 10, 16, 59, 60, 127, 128, 255, 256, 999, 1_000, 10_000, 65_535, 65_536, 1_000_000,
    1_000_001, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**31),
    -(2**63),
)  # fmt: skip
_TEXTS: Final = (
    "", "a", "alice", "client", "plan", "default", "reset", "partitions", "unlimited", "100/minute", "1/day",
    "5/10m", "0/1s", "9007199254740993/31d", "-1/s", "1.5/s", "allow", "deny", "a" * 256, "a" * 257,
    "\u00e9" * 128, "\u2028", "\x00", "\x7f", "a\nb", "\U0001f300" * 64, "01", "running",
    "sha256:" + "0" * 64,
)  # fmt: skip
_PIECES: Final = (
    b"\x00", b"\xff", b"\xc0", b"\xc1", b"\x90", b"\x91", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\x7f\xff\xff\xff", b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7), b"\xcb\x7f\xf8" + bytes(6), b"\xa1\xff", b"\xed\xa0\x80", b"\x91" * 3_000,
    b"[" * 3_000, b"\x81\xa1a" * 800, b'{"a":' * 800, b"9" * 400, b"1e999", b"NaN", b"-", b"\\ud800", b'"',
    b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b" ", b"\t",
    b";", b"0", b"\x1e",
)  # fmt: skip

Mutation = Callable[[Random, bytes], bytes]


# --- bytes ---


def flip_bits(random: Random, data: bytes) -> bytes:
    """Change a few bytes."""
    changed = bytearray(data or b"\0")
    for _ in range(random.choice((1, 1, 2, 4))):
        changed[random.randrange(len(changed))] = random.choice((random.randrange(256), 0, 0xFF, 0x7F, 0x80))
    return bytes(changed)


def truncate(random: Random, data: bytes) -> bytes:
    """Remove the end."""
    return data[: random.randrange(len(data) + 1)]


def insert(random: Random, data: bytes) -> bytes:
    """Insert a piece that means something in some format."""
    at = random.randrange(len(data) + 1)
    return data[:at] + random.choice(_PIECES) + data[at:]


def replace(random: Random, data: bytes) -> bytes:
    """Replace a piece by one that means something in some format."""
    at = random.randrange(len(data) + 1)
    return data[:at] + random.choice(_PIECES) + data[at + random.randrange(9) :]


def remove(random: Random, data: bytes) -> bytes:
    """Remove a piece."""
    at = random.randrange(len(data) + 1)
    return data[:at] + data[at + random.randint(1, 16) :]


def repeat(random: Random, data: bytes) -> bytes:
    """Repeat a piece."""
    at, end = sorted((random.randrange(len(data) + 1), random.randrange(len(data) + 1)))
    return data[:end] + data[at:end] * random.choice((1, 1, 2, 50)) + data[end:]


_BYTES: Final[tuple[Mutation, ...]] = (flip_bits, flip_bits, truncate, insert, replace, remove, repeat)


def splice(random: Random, data: bytes, other: bytes) -> bytes:
    """Join the beginning of *data* and the end of *other*."""
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


# --- trees ---


def _value(random: Random, depth: int = 0) -> Any:
    """Return a random JSON value."""
    kind = random.randrange(9 if depth < 3 else 6)
    match kind:
        case 0:
            return None
        case 1:
            return random.choice((True, False))
        case 2 | 3:
            return random.choice(_INTEGERS)
        case 4 | 5:
            return random.choice(_TEXTS)
        case 6:
            return random.choice((0.0, -0.5, 1.0, 1e300))
        case 7:
            return [_value(random, depth + 1) for _ in range(random.randrange(4))]
        case _:
            return {random.choice(_TEXTS): _value(random, depth + 1) for _ in range(random.randrange(3))}


def mutate_tree(random: Random, tree: Any) -> Any:
    """Return a copy of *tree* in which one node is changed, added, doubled or removed."""
    if isinstance(tree, list) and tree and random.random() < 0.85:
        items: list[Any] = list(tree)
        at = random.randrange(len(items))
        match random.randrange(6):
            case 0:
                del items[at]
            case 1:
                items.insert(at, items[random.randrange(len(items))])
            case 2:
                items.append(_value(random))
            case _:
                items[at] = mutate_tree(random, items[at])
        return items
    if isinstance(tree, dict) and tree and random.random() < 0.85:
        fields = dict(tree)
        name = random.choice(list(fields))
        match random.randrange(6):
            case 0:
                del fields[name]
            case 1:
                fields[random.choice(_TEXTS)] = _value(random)
            case _:
                fields[name] = mutate_tree(random, fields[name])
        return fields
    if isinstance(tree, int) and not isinstance(tree, bool) and random.random() < 0.5:
        return max(-(2**63), min(2**64 - 1, tree + random.choice((-1, 1, -1_000, 1_000))))
    return _value(random)


def _mutate_encoded(
    random: Random, data: bytes, read: Callable[[bytes], Any], write: Callable[[Any], bytes]
) -> bytes:
    try:
        tree = read(data)
        for _ in range(random.choice((1, 1, 2, 3))):
            tree = mutate_tree(random, tree)
        return write(tree)
    except (ValueError, TypeError, RecursionError, OverflowError):
        return flip_bits(random, data)


def mutate_json(random: Random, data: bytes) -> bytes:
    """Change the tree of JSON bytes; if they are none, change the bytes."""
    return _mutate_encoded(
        random,
        data,
        json.loads,
        lambda tree: json.dumps(tree, ensure_ascii=False).encode(errors="surrogatepass"),
    )


def mutate_msgpack(random: Random, data: bytes, start: int) -> bytes:
    """Change the tree of the msgpack that begins at *start*; if there is none, change the bytes."""
    return data[:start] + _mutate_encoded(
        random, data[start:], msgspec.msgpack.decode, msgspec.msgpack.encode
    )


class Mutator:
    """Makes inputs of the examples of one target. The same seed gives the same inputs.

    Args:
        random: The source of all choices.
        examples: Valid inputs, at least one.
        msgpack_at: Index at which msgpack begins in binary inputs; ``None`` if there is none.
    """

    _MAX_EXAMPLES: Final = 400

    def __init__(self, random: Random, examples: Sequence[bytes], msgpack_at: int | None = None) -> None:
        self._random = random
        self._examples = list(examples)
        self._original = len(self._examples)
        self._msgpack_at = msgpack_at

    def keep(self, data: bytes) -> None:
        """Use *data*, which reached something new, as an example from now on."""
        if len(self._examples) < self._MAX_EXAMPLES:
            self._examples.append(data)
        else:
            self._examples[self._random.randrange(self._original, self._MAX_EXAMPLES)] = data

    def next_input(self) -> bytes:
        """Return the next input."""
        random = self._random
        # Inputs that were kept drift away from what a decoder expects.
        data = self._examples[
            random.randrange(self._original if random.random() < 0.4 else len(self._examples))
        ]
        if random.random() < 0.5:
            if data[:1] in (b"{", b"["):
                data = mutate_json(random, data)
            elif self._msgpack_at is not None:
                data = mutate_msgpack(random, data, self._msgpack_at)
            if random.random() < 0.7:
                return data[:MAX_BYTES]
        for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
            if random.random() < 0.1:
                data = splice(random, data, random.choice(self._examples))
            else:
                data = random.choice(_BYTES)(random, data)
        return data[:MAX_BYTES]
