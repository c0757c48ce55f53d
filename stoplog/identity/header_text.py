"""One decoding of header fields: UTF-8, and the digest of anything else."""

from __future__ import annotations

from collections.abc import Iterable

from stoplog.policy import digest_id, usable_id


def header_id(value: bytes) -> str:
    """Return the id in the value of a header field.

    An invalid one (not UTF-8, too long, or with control characters) is replaced by its digest. White space
    around it is no part of it.

    >>> header_id("élise".encode()), header_id(b" alice ")
    ('élise', 'alice')
    >>> header_id("élise".encode("latin-1"))[:15]
    'sha256:4dfbf037'
    """
    stripped = value.strip(b" \t")
    try:
        return usable_id(stripped.decode())
    except UnicodeDecodeError:
        return digest_id(stripped)


def field_id(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """Return the id in the header field *name*; ``None`` if the field is missing or empty.

    The values of a field that occurs more than once are joined by a comma, as HTTP defines it.

    Args:
        headers: Header fields, with names in lower case.
        name: Name of the field, in lower case.
    """
    values = [value.strip(b" \t") for key, value in headers if key == name]
    joined = b", ".join(values)
    return header_id(joined) if joined else None
