"""Recognize the heads of plain checks that were parsed before.

A client sends almost the same head with every check. It differs in fields that nothing depends on, such as
``traceparent`` or ``X-Request-Id``. The *essence* of a head is its request line and the fields that matter
(:func:`matters`). Two heads with the same essence are handled alike, so the second one need not be parsed.

The parser has accepted every essence that is remembered. Only fields that it would accept too are left out:
a name, a colon, and printable ASCII without a line end.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, Generic, TypeVar

from stoplog_gateway.access.control import PROXY_FIELD
from stoplog_gateway.access.local_callers import tells_origin
from stoplog_gateway.http.failing_closed import UNAVAILABLE_FIELD

T = TypeVar("T")

MAX_SIZE: Final = 2_048
"""Maximum bytes of a head that is recognized."""

MAX_HEADS: Final = 512
"""Heads that are remembered. One more makes all of them be forgotten."""

_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e]*")

_MATTERS: Final = frozenset(
    (
        # the end of the body, and of the connection
        b"connection",
        b"content-length",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        # the type of the body, and the caller
        b"authorization",
        PROXY_FIELD,
        b"content-encoding",
        b"content-type",
        # what a proxy wants
        UNAVAILABLE_FIELD,
    )
)


@lru_cache(1_024)
def matters(name: bytes) -> bool:
    """Return whether the handling of a plain check depends on the field *name*, which is in lower case.

    The fast path receives no other field, so that it cannot depend on one that heads are compared without.
    """
    return name in _MATTERS or tells_origin(name)


class KnownHeads(Generic[T]):
    """Heads that were parsed before, each with a value."""

    def __init__(self) -> None:
        self._whole: dict[bytes, T] = {}
        self._essences: dict[tuple[bytes, ...], T] = {}
        self._lines: dict[bytes, bool] = {}
        """Whether a line matters, for the lines of all heads above."""

    def find(self, head: bytes) -> T | None:
        """Return the value of *head*, or ``None``.

        Args:
            head: Bytes up to the first empty line, including it.
        """
        value = self._whole.get(head)
        # A request line must not look like a field, because it could be left out then.
        if value is None and len(head) <= MAX_SIZE and head.startswith(b"POST "):
            return self._essences.get(self._essence(head))
        return value

    def remember(self, head: bytes, value: T) -> None:
        """Remember *value* for *head*, which the parser has accepted."""
        if len(head) > MAX_SIZE:
            return
        if len(self._whole) >= MAX_HEADS:
            self.clear()
        self._whole[head] = self._essences[self._essence(head)] = value
        for line in head.split(b"\r\n"):
            self._lines[line] = _line_matters(line)

    def clear(self) -> None:
        """Forget all heads, because their handling has changed."""
        self._whole.clear()
        self._essences.clear()
        self._lines.clear()

    def _essence(self, head: bytes) -> tuple[bytes, ...]:
        is_known, essence = self._lines.get, []
        for line in head.split(b"\r\n"):
            line_matters = is_known(line)
            if line_matters is None:
                line_matters = _line_matters(line)
            if line_matters:
                essence.append(line)
        return tuple(essence)


def _line_matters(line: bytes) -> bool:
    field = _FIELD.fullmatch(line)
    return field is None or matters(field[1].lower())
