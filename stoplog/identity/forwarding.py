"""Find the address of a client behind proxies.

Each proxy appends the address of its caller to a list in a header field. Everything that the client itself
sent stands to the left of that. Therefore lists are read from the right: the client is the first address that
is no trusted proxy. A field of a caller that is no trusted proxy is not read at all.

Proxies pass on the fields that they do not set, and a client may send any of them. So if two fields name
different clients, neither is believed: the request counts for the proxy that sent it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from stoplog.identity.addresses import Address, Networks, parse_address

FORWARDING_FIELDS: Final = (b"x-forwarded-for", b"forwarded", b"x-real-ip")
"""Header fields with addresses of callers. The first of them counts if none leads to a client."""

MAX_HOPS: Final = 32

_MAX_ELEMENT: Final = 1_024
"""Characters of the longest element of ``Forwarded`` that is read."""

_HOPS: Final = re.compile(r"\d{1,9}", re.ASCII)
_PAIR: Final = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:\"((?:[^\"\\]|\\.)*)\"|([^\s\";,]+))\s*")


class Located(NamedTuple):
    """Where a request comes from.

    Attributes:
        address: Address of the client; ``None`` if not even the caller's is known.
        claims: The different addresses of clients in the header fields, if there are several. Then *address*
            is the caller's.
    """

    address: Address | None
    claims: tuple[Address, ...] = ()


class TrustedProxies:
    """The proxies whose header fields are believed: by their networks, or by their number.

    Args:
        networks: Networks of the proxies.
        hops: Number of proxies in front of this process, if it is known instead. The caller is the first.
    """

    def __init__(self, networks: Networks | None = None, hops: int = 0) -> None:
        self._networks = networks or Networks()
        self._hops = hops

    @classmethod
    def parse(cls, text: str) -> TrustedProxies:
        """Return the proxies that *text* describes: a number, or networks; empty for none.

        Raises:
            ValueError: *text* is neither. The message contains the remedy.
        """
        if _HOPS.fullmatch(text.strip()) is None:
            return cls(Networks.parse(text))
        hops = int(text)
        if hops > MAX_HOPS:
            raise ValueError(f"{hops} proxies in a row: use 0 to {MAX_HOPS}, or networks such as 10.0.0.0/8")
        return cls(hops=hops)

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
            return Located(caller)
        fields: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            if name in FORWARDING_FIELDS:
                fields.setdefault(name, []).append(value)
        found: list[Address] = []
        last = caller
        for name in FORWARDING_FIELDS:
            if name in fields:
                address, is_client = self._walk(caller, elements_from_right(name, fields[name]))
                if is_client and address is not None:
                    found.append(address)
                elif last is caller:
                    last = address
        if not found:
            return Located(last)
        claims = tuple(dict.fromkeys(found))
        return Located(claims[0]) if len(claims) == 1 else Located(caller, claims)

    def _walk(self, caller: Address | None, elements: Iterator[str]) -> tuple[Address | None, bool]:
        """Return the last good address of a list, and whether it is that of a client."""
        last, hop = caller, 1
        for element in elements:
            address = parse_address(element)
            if address is None:
                break
            last, hop = address, hop + 1
            if not self._trusts(address, hop):
                return address, True
        return last, False

    def _trusts(self, address: Address | None, hop: int) -> bool:
        """Return whether *address*, the given number of *hop* from here, is a proxy."""
        if self._hops:
            return hop <= self._hops
        return address is not None and address in self._networks


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
