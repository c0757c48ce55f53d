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
from stoplog_gateway.access.proxy_paths import AUTHORIZE
from stoplog_gateway.http.failing_closed import UNAVAILABLE_FIELD

T = TypeVar("T")

MAX_SIZE: Final = 2_048
"""Maximum bytes of a head that is recognized."""

MAX_HEADS: Final = 512
"""Heads that are remembered. One more makes all of them be forgotten."""

_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e]*")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e]*")
_BLANKS: Final = b" \t"
"""Bytes before a value that the parser leaves out."""

_STARTS: Final = tuple(
    b"%s %s%s" % (method, AUTHORIZE.encode(), end) for method in (b"GET", b"HEAD") for end in (b" ", b"?")
)

_MATTERS_TO_ALL: Final = frozenset(
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
        # what a proxy wants
        PROXY_FIELD,
        UNAVAILABLE_FIELD,
    )
)
_MATTERS: Final = _MATTERS_TO_ALL | frozenset(
    (
        # the type of the body, and the caller
        b"authorization",
        b"content-encoding",
        b"content-type",
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


class KnownProxyHeads(Generic[T]):
    """Heads of ``GET`` and ``HEAD /v1/authorize`` that were parsed before, each with a value.

    They differ in the client id, which is found apart, and in what the proxy's caller sent.

    Args:
        client_header: Header field with the client id.
    """

    def __init__(self, client_header: str) -> None:
        self._client_field = client_header.lower().encode()
        # The end of a request cannot depend on what differs.
        self._usable = self._client_field not in _MATTERS_TO_ALL
        self._essences: dict[tuple[bytes, ...], T] = {}
        self._others: dict[bytes, T] = {}
        """The same values, by all lines of a head but that of the client."""
        self._line_start = b"\r\n"
        """The beginning of that line in the head that was remembered last, with the line end before it."""

    def find(self, head: bytes) -> tuple[T, bytes] | None:
        """Return the value of *head* and the client id in it, or ``None``.

        Args:
            head: Bytes up to the first empty line, including it.
        """
        if not head.startswith(_STARTS) or len(head) > MAX_SIZE:
            return None
        others, client = self._without_client(head)
        value = self._others.get(others)
        if value is not None and client is not None and _VALUE.fullmatch(client):
            return value, client.lstrip(_BLANKS)
        essence, clients = self._split(head)
        value = self._essences.get(essence)
        if value is None or len(clients) != 1:
            return None
        return value, clients[0]

    def accepts(self, head: bytes) -> bool:
        """Return whether *head* may be remembered: its path is ``/v1/authorize``, and it is short."""
        return self._usable and head.startswith(_STARTS) and len(head) <= MAX_SIZE

    def remember(self, head: bytes, value: T) -> None:
        """Remember *value* for *head*, which the parser has accepted."""
        if self.accepts(head):
            essence, clients = self._split(head)
            # A line that is no field here may be one to the parser, and have the client id.
            if len(clients) != 1 or not all(map(_FIELD.fullmatch, essence[1:-2])):
                return
            if len(self._others) >= MAX_HEADS:
                self.clear()
            self._essences[essence] = value
            names = (line.partition(b":")[0] for line in head.split(b"\r\n"))
            name = next(name for name in names if name.lower() == self._client_field)
            self._line_start = b"\r\n%s:" % name
            # Every other line is the request line, or a field that is not the client's. So a head of the
            # same other lines has the client only once, too.
            others, _ = self._without_client(head)
            self._others[others] = value

    def clear(self) -> None:
        """Forget all heads, because their handling has changed."""
        self._essences.clear()
        self._others.clear()

    def _without_client(self, head: bytes) -> tuple[bytes, bytes | None]:
        """Return *head* without the line of the client, and the value in that line.

        Return *head* and ``None`` if no line begins as that of the client did in the last head.
        """
        begin = head.find(self._line_start)
        if begin < 0:
            return head, None
        at = begin + len(self._line_start)
        end = head.find(b"\r\n", at)
        return head[:begin] + head[end:], head[at:end]

    def _split(self, head: bytes) -> tuple[tuple[bytes, ...], list[bytes]]:
        """Return the essence of *head* without the client id, and the values of the field with that."""
        start, *lines = head.split(b"\r\n")
        essence, clients = [start], []
        for line in lines:
            field = _FIELD.fullmatch(line)
            name = b"" if field is None else field[1].lower()
            if name == self._client_field:
                clients.append(line[len(name) + 1 :].lstrip(_BLANKS))
            elif field is None or name in _MATTERS_TO_ALL:
                essence.append(line)
        return tuple(essence), clients


def _line_matters(line: bytes) -> bool:
    field = _FIELD.fullmatch(line)
    return field is None or matters(field[1].lower())
