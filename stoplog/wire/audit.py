"""``audit``: every change of limits and every reset, as the owner of its partition applied it.

=====  ===============================================================================================
part   contents
=====  ===============================================================================================
key    that of the update: JSON ``["client", "alice", "login"]`` (:mod:`stoplog.wire.limit_updates`)
value  JSON, the fields of :class:`AuditRecord`; readers ignore unknown fields and refuse a higher
       ``version``
=====  ===============================================================================================

::

    {"version": 1, "position": 80871424, "at_ms": 1764457200000, "policy_version": 41,
     "limits": ["100/minute"], "previous_version": 12, "previous_limits": ["50/minute"],
     "who": "admin", "address": "10.0.0.7", "request_id": "7d1f0c93b2a84e55"}

The partition is that of the update in ``checks``. A plan or the default is changed in every partition, and
each owner writes a record. Two lanes write a record each, and a worker that takes a partition over may repeat
some. Records of one partition with the same position are the same.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from stoplog.errors import UndecodableRecord
from stoplog.wire.format import to_json
from stoplog.wire.limit_updates import UpdateKey

VERSION: Final = 1

KAFKA: Final = "kafka"
"""The author of an update that a producer wrote to ``limit-updates`` without naming one."""

_MAX_CHARACTERS: Final = 256
"""Characters of an author, an address or a request id. Any producer of ``limit-updates`` may write them."""

_HEADERS: Final = ("who", "address", "request-id")


class ChangeSource(msgspec.Struct, frozen=True):
    """The source of a change. Every part may be empty but the first.

    Attributes:
        who: The author: the name of a token, ``local``, ``sdk`` or ``kafka``.
        address: The address from which the request came.
        request_id: The id of the request.
    """

    who: str
    address: str = ""
    request_id: str = ""


class AuditRecord(msgspec.Struct, frozen=True):
    """A change of limits or a reset, in one partition.

    Attributes:
        version: Version of this format.
        position: Position of the update in ``checks``: the id of the record in its partition.
        at_ms: The broker's timestamp of the update in ``checks``, ms since the Unix epoch.
        policy_version: Offset of the update in ``limit-updates``.
        limits: The new limits; ``None`` for a deletion or a reset.
        previous_version: Version of the limits that were replaced; ``None`` if there were none.
        previous_limits: The limits that were replaced.
        who: See :class:`ChangeSource`, also for the next two.
        address: See ``who``.
        request_id: See ``who``.
    """

    version: int
    position: int
    at_ms: int
    policy_version: int
    limits: Any
    previous_version: int | None
    previous_limits: Any
    who: str
    address: str
    request_id: str


class AuditEntry(msgspec.Struct, frozen=True):
    """A record and the key of the update."""

    key: UpdateKey
    record: AuditRecord


class _Versioned(msgspec.Struct):
    version: int


_version = msgspec.json.Decoder(_Versioned)
_record = msgspec.json.Decoder(AuditRecord)


def encode_audit(record: AuditRecord) -> bytes:
    """Return the value of a record."""
    return to_json(record)


def decode_audit(value: bytes | None) -> AuditRecord:
    """Return the content of a record.

    Raises:
        UndecodableRecord: The value is malformed, or a newer version of Stoplog wrote it.
    """
    try:
        version = _version.decode(value or b"").version
        if version != VERSION:
            raise UndecodableRecord(f"format version {version} is not known here; upgrade this program")
        return _record.decode(value or b"")
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not an audit record: {exc}") from exc


def source_headers(source: ChangeSource) -> list[tuple[str, bytes]]:
    """Return the headers by which a record of ``limit-updates`` names its source."""
    parts = (source.who, source.address, source.request_id)
    return [(name, part.encode()) for name, part in zip(_HEADERS, parts, strict=True) if part]


def source_of(headers: list[tuple[str, bytes]] | None) -> ChangeSource:
    """Return the source that *headers* name. Any producer may write them, so they are cut and cleaned."""
    found = {name: _clean(raw) for name, raw in headers or () if name in _HEADERS and raw}
    who, address, request_id = (found.get(name, "") for name in _HEADERS)
    return ChangeSource(who or KAFKA, address, request_id)


def _clean(raw: bytes) -> str:
    text = raw[: 4 * _MAX_CHARACTERS].decode(errors="replace")[:_MAX_CHARACTERS]
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
