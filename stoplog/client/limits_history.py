"""The history of one client's, plan's or the default limits, from the topic ``audit``."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Final

import msgspec

from stoplog.client.transport.audit_reader import RawAudit
from stoplog.errors import InvalidInput, UndecodableRecord
from stoplog.wire.audit import AuditEntry, decode_audit
from stoplog.wire.limit_updates import UpdateKey, encode_update_key

MAX_SCAN: Final = 50_000
"""Records read for one page, which takes about a second. A page can therefore be short, even empty."""


class HistoryPage(msgspec.Struct, frozen=True):
    """Some changes, the newest first, and the cursor of the next page; ``None`` on the last page.

    A page with a next one may be short, even empty. A change can come again on a later page, with the same
    position.
    """

    items: list[AuditEntry]
    next: str | None


def history_page(records: Iterable[RawAudit], key: UpdateKey, limit: int) -> HistoryPage:
    """Return a page of the changes of *key*, and of the resets that concern it.

    Args:
        records: The records of the key's partition, the newest first.
        key: The key.
        limit: Entries of the page, at most.
    """
    wanted = {encode_update_key(one): one for one in _keys(key)}
    found: dict[int, AuditEntry] = {}
    for read, record in enumerate(records):
        if len(found) == limit or read == MAX_SCAN:
            return HistoryPage(_sorted(found), str(record.offset + 1))
        if record.key in wanted:
            with suppress(UndecodableRecord):
                change = decode_audit(record.value)
                # Two lanes record a change, and a worker may repeat a record after a takeover.
                found.setdefault(change.position, AuditEntry(wanted[record.key], change))
    return HistoryPage(_sorted(found), None)


def read_cursor(cursor: str | None) -> int | None:
    """Return the offset in *cursor*.

    Raises:
        InvalidInput: It is no cursor.
    """
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 18):
        raise InvalidInput("before", "not a cursor", "use `next` of the previous page, or leave it out")
    return int(cursor)


def _keys(key: UpdateKey) -> list[UpdateKey]:
    if key.kind != "client":
        return [key]
    # A reset without a resource empties the counters of all resources.
    resets = {UpdateKey("reset", key.id, resource) for resource in (key.resource, "")}
    return [key, *resets]


def _sorted(found: dict[int, AuditEntry]) -> list[AuditEntry]:
    return [found[position] for position in sorted(found, reverse=True)]
