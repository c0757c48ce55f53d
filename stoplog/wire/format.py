"""The common parts of the formats of all topics: the version byte, bounds, JSON and record headers.

The first byte of every binary value is the version of its format::

    offset  size  type   field
    0       1     u8     version: 1; a JSON value begins with "{" (0x7B) instead
    1       1     u8     kind of record, an ASCII letter

All integers are big-endian. A reader refuses a version or kind that it does not know.
"""

from __future__ import annotations

from operator import methodcaller
from typing import Any, Final

import msgspec

from stoplog.errors import UndecodableRecord

VERSION: Final = 1
"""The only version of every binary format."""

KIND_BATCH: Final = ord("B")
"""Kind of a batch of checks, and of the reply to one."""

NO_REPLY: Final = -1
"""Reply partition of a record that wants no reply."""

MAX_RECORD: Final = 4 * 1024 * 1024
"""Bytes of a record's value, decompressed; a topic's ``max.message.bytes`` bounds compressed bytes only."""

to_json = msgspec.json.Encoder().encode

pack = msgspec.msgpack.Encoder().encode

# For a header name that is not UTF-8, confluent-kafka's method sets an exception and still returns a list,
# with a null pointer in it. `methodcaller` notices the exception. A plain call does not once CPython has
# specialized it, and the process crashes. It also crashes at the second call for the same message.
_headers = methodcaller("headers")


class ReplyTo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The partition of ``replies`` for a JSON reply, and the id that the reply carries."""

    partition: int
    id: str


def check_size(value: bytes) -> None:
    """Refuse a key or value of more than :data:`MAX_RECORD` bytes.

    Raises:
        UndecodableRecord: It is larger.
    """
    if len(value) > MAX_RECORD:
        raise UndecodableRecord(f"{len(value):,} bytes; a record has at most {MAX_RECORD:,}")


def headers_of(message: Any) -> list[tuple[str, bytes]] | None:
    """Return the headers of *message*, a consumed record. Call this at most once per message.

    Raises:
        UndecodableRecord: A header's name is not UTF-8.
    """
    try:
        return _headers(message)  # type: ignore[no-any-return]
    except (SystemError, UnicodeDecodeError) as exc:
        # confluent-kafka: "returned a result with an exception set".
        raise UndecodableRecord("a header has a name that is not UTF-8") from exc
