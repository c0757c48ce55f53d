"""Find the address of a client behind proxies.

Each proxy appends the address of its caller to a list in a header field. Everything that the client itself
sent stands to the left of that. Therefore lists are read from the right: the client is the first address that
is no trusted proxy. A field of a caller that is no trusted proxy is not read at all.

Proxies pass on the fields that they do not set, and a client may send any of them. So if two fields name
different clients, or one of them cannot be read as far as a client, none is believed: the request counts for
the proxy that sent it. If it is known which field the proxies set, no other one need be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from stoplog.identity.addresses import Address, Networks, parse_address

FORWARDING_FIELDS: Final = (b"x-forwarded-for", b"forwarded", b"x-real-ip")
"""Header fields with addresses of callers. The first of them counts if none leads to a client."""

_FIELDS: Final[dict[str, tuple[bytes, ...]]] = {
    "": FORWARDING_FIELDS,
    **{field.decode(): (field,) for field in FORWARDING_FIELDS},
}
"""The fields that are read, by the setting in lower case."""

MAX_HOPS: Final = 32

_MAX_ELEMENT: Final = 1_024
"""Characters of the longest element of ``Forwarded`` that is read."""

_HOPS: Final = re.compile(r"\d{1,9}", re.ASCII)
_PAIR: Final = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:\"((?:[^\"\\]|\\.)*)\"|([^\s\";,]+))\s*")


class Located(NamedTuple):
    """Where a request comes from.

    Attributes:
        address: Address of the client; ``None`` if not even the caller's is known.
        claims: The addresses of clients in header fields that are not believed. Then *address* is the
            caller's.
        certain: Whether this is the client's address, if a caller that is no trusted proxy is the client.
        is_caller: Whether no header field was read, because the caller is no trusted proxy.
    """

    address: Address | None
    claims: tuple[Address, ...] = ()
    certain: bool = True
    is_caller: bool = False


class _Walk(NamedTuple):
    """The way through a list: its last good address, and whether that is a client's.

    ``ended`` tells that an element after it is no address.
    """

    address: Address | None
    is_client: bool = False
    ended: bool = False


class TrustedProxies:
    """The proxies whose header fields are believed: by their networks, or by their number.

    Args:
        networks: Networks of the proxies.
        hops: Number of proxies in front of this process, if it is known instead. The caller is the first.
        fields: The header fields that are read, of :data:`FORWARDING_FIELDS`.
    """

    def __init__(
        self,
        networks: Networks | None = None,
        hops: int = 0,
        fields: tuple[bytes, ...] = FORWARDING_FIELDS,
    ) -> None:
        self._networks = networks or Networks()
        self._hops = hops
        self._fields = fields

    @classmethod
    def parse(cls, text: str, field: str = "") -> TrustedProxies:
        """Return the proxies that *text* describes: a number, or networks; empty for none.

        Args:
            text: The proxies.
            field: The header field that they set; empty if any.

        Raises:
            ValueError: *text* or *field* is invalid. The message contains the remedy.
        """
        fields = forwarding_fields(field)
        if _HOPS.fullmatch(text.strip()) is None:
            return cls(Networks.parse(text), fields=fields)
        hops = int(text)
        if hops > MAX_HOPS:
            raise ValueError(f"{hops} proxies in a row: use 0 to {MAX_HOPS}, or networks such as 10.0.0.0/8")
        return cls(hops=hops, fields=fields)

    def __bool__(self) -> bool:
        return bool(self._networks) or self._hops > 0

    def locate(self, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> Located:
        """Return where a request comes from.

        Args:
            peer: Address of the caller, which may be a proxy; ``None`` if it is not known.
            headers: Header fields, with names in lower case.
        """
        caller = None if peer is None else parse_address(peer)
        if not self._trusts(caller, 1):
            return Located(caller, is_caller=True)
        fields: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            if name in self._fields and value.strip(b" \t"):
                fields.setdefault(name, []).append(value)
        walks = [
            self._walk(caller, elements_from_right(name, fields[name]))
            for name in self._fields
            if name in fields
        ]
        ended = any(walk.ended for walk in walks)
        claims = tuple(dict.fromkeys(walk.address for walk in walks if walk.is_client and walk.address))
        if claims:
            known = len(claims) == 1 and not ended
            return Located(claims[0]) if known else Located(caller, claims, certain=False)
        lasts = [walk.address for walk in walks]
        if ended:
            # A client may have sent one of several fields, with an address of a proxy as well.
            return Located(lasts[0] if len(set(lasts)) == 1 else caller, certain=False)
        last = next((address for address in lasts if address != caller), caller)
        return Located(last, certain=bool(walks))

    def _walk(self, caller: Address | None, elements: Iterator[str]) -> _Walk:
        last, hop = caller, 1
        for element in elements:
            address = parse_address(element)
            if address is None:
                return _Walk(last, ended=True)
            last, hop = address, hop + 1
            if not self._trusts(address, hop):
                return _Walk(address, is_client=True)
        return _Walk(last)

    def _trusts(self, address: Address | None, hop: int) -> bool:
        """Return whether *address*, the given number of *hop* from here, is a proxy."""
        if self._hops:
            return hop <= self._hops
        return address is not None and address in self._networks


def forwarding_fields(field: str) -> tuple[bytes, ...]:
    """Return the header fields that are read if the proxies set *field*; all of them if it is empty.

    Raises:
        ValueError: It is none with addresses of callers. The message contains the remedy.

    >>> forwarding_fields("X-Real-IP")
    (b'x-real-ip',)
    """
    fields = _FIELDS.get(field.strip().lower())
    if fields is None:
        raise ValueError(
            f"{field.strip()[:60]!r} has no addresses of callers: use X-Forwarded-For, Forwarded or X-Real-IP"
        )
    return fields


def elements_from_right(name: bytes, values: list[bytes]) -> Iterator[str]:
    """Yield the addresses in the values of a forwarding field from the right, as they are written.

    An element of ``Forwarded`` without an address is yielded as the empty text.
    """
    text = b",".join(values).decode("latin-1")
    if name == b"forwarded":
        for element in _forwarded_elements(text):
            yield _for_of(element)
    else:
        yield from reversed(text.split(","))


def _forwarded_elements(text: str) -> Iterator[str]:
    """Yield the elements of ``Forwarded`` (RFC 7239) from the right.

    Quotes are matched from the right, too: an open quote that the client sent must not hide what a proxy
    appended to it.
    """
    end, in_quotes = len(text), False
    for index in range(len(text) - 1, -1, -1):
        char = text[index]
        if end - index > _MAX_ELEMENT:
            yield ""
            return
        if char == '"' and not (in_quotes and _is_escaped(text, index)):
            in_quotes = not in_quotes
        elif char == "," and not in_quotes:
            yield text[index + 1 : end]
            end = index
    yield text[:end]


def _is_escaped(text: str, index: int) -> bool:
    start = index
    while start and index - start < _MAX_ELEMENT and text[start - 1] == "\\":
        start -= 1
    return (index - start) % 2 == 1


def _for_of(element: str) -> str:
    """Return the value of ``for`` in an element of ``Forwarded``; empty if it has none or is malformed."""
    at, values = 0, []
    while True:
        pair = _PAIR.match(element, at)
        if pair is None:
            return ""
        if pair[1].lower() == "for":
            values.append(pair[3] if pair[2] is None else re.sub(r"\\(.)", r"\1", pair[2]))
        at = pair.end()
        if at == len(element):
            return values[0] if len(values) == 1 else ""
        if element[at] != ";":
            return ""
        at += 1
