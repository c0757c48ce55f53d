"""What the formats of all topics share: the version byte, bounds, JSON and record headers.

The first byte of every binary value is the format's version, so that a reader can refuse a format that it
does not know. JSON values begin with ``{``, which is no version.
"""

from __future__ import annotations

from operator import methodcaller
from typing import Any, Final

import msgspec

from stoplog.errors import UndecodableRecord

VERSION: Final = 1

KIND_BATCH: Final = ord("B")

NO_REPLY: Final = -1

MAX_RECORD: Final = 4 * 1024 * 1024
"""Bytes of a record's value, unpacked; a topic's ``max.message.bytes`` bounds only what is compressed."""

to_json = msgspec.json.Encoder().encode

pack = msgspec.msgpack.Encoder().encode

# Given a name that is not UTF-8, confluent-kafka's method sets an exception and returns a list all the same,
# with a null pointer in it. A call by `methodcaller` raises then; one written out is specialized by CPython
# once it has run a few times, no longer looks, and the process dies. So it does at a second call.
_headers = methodcaller("headers")


class ReplyTo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a JSON reply goes, and the id it carries."""

    partition: int
    id: str


def check_size(value: bytes) -> None:
    """Refuse a value or key of more than :data:`MAX_RECORD` bytes.

    Raises:
        UndecodableRecord: it is too large.
    """
    if len(value) > MAX_RECORD:
        raise UndecodableRecord(f"{len(value):,} bytes; a record has at most {MAX_RECORD:,}")


def headers_of(message: Any) -> list[tuple[str, bytes]] | None:
    """The headers of *message*, a record as consumed; to be called once a message.

    Raises:
        UndecodableRecord: with the reason.
    """
    try:
        return _headers(message)  # type: ignore[no-any-return]
    except (SystemError, UnicodeDecodeError) as exc:
        # confluent-kafka: "returned a result with an exception set".
        raise UndecodableRecord("a header has a name that is not UTF-8") from exc
