"""Decide where a request's body ends, and refuse heads that two HTTP servers can read differently.

A proxy and the gateway must agree on where each request ends. Otherwise a client can hide a second request
in the body of the first one (request smuggling). The parser, llhttp, refuses most ambiguous heads. This
module refuses the rest, and computes the end of the body independently of the parser.

It also finds the path in a request's target, for requests that the framework does not route.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import Final
from urllib.parse import unquote_to_bytes

import httptools

from stoplog.asgi.rate_limit_headers import Headers

IN_CHUNKS: Final = -1
"""Length of a body whose end the body itself announces (``Transfer-Encoding: chunked``)."""

_MAX_LENGTH_DIGITS: Final = 18

_HOST: Final = re.compile(
    rb"(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{0,5}))?"
)
_MAX_PORT: Final = 65_535
_ABSOLUTE: Final = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)")
_SCHEMES: Final = (b"http", b"https")


class BadHead(Exception):
    """The head of a request is invalid. The connection cannot be used any longer.

    Attributes:
        detail: The fault.
        field: Name of the header field that is wrong; ``None`` for the request line.
        remedy: The correction that the sender can make.
    """

    def __init__(self, detail: str, field: str | None, remedy: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.remedy = remedy


def body_length(version: str, target: bytes, headers: Headers) -> int:
    """Check a request's head, and return the bytes of its body, or :data:`IN_CHUNKS`.

    Args:
        version: HTTP version, such as ``1.1``.
        target: The target of the request line.
        headers: Header fields, with names in lower case.

    Raises:
        BadHead: The host is missing, repeated or malformed, or the end of the body is ambiguous.
    """
    hosts: list[bytes] = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
    if version not in ("1.1", "1.0"):
        raise BadHead(f"HTTP/{version} is not supported", None, "use HTTP/1.1")
    _check_host(version, target, hosts)
    if codings:
        if lengths or version == "1.0" or len(codings) > 1 or codings[0].strip().lower() != b"chunked":
            raise BadHead(
                "the length of the body is ambiguous",
                "Transfer-Encoding",
                "send either Content-Length or Transfer-Encoding: chunked",
            )
        return IN_CHUNKS
    if not lengths:
        return 0
    digits = lengths[0].strip(b" \t")
    if len(lengths) > 1 or not digits.isdigit() or len(digits) > _MAX_LENGTH_DIGITS:
        raise BadHead("the length of the body is ambiguous", "Content-Length", "send one decimal number")
    return int(digits)


def _check_host(version: str, target: bytes, hosts: list[bytes]) -> None:
    remedy = "send one Host header field with the name or address of the gateway"
    if not hosts:
        if version == "1.1":
            raise BadHead("Host is missing", "Host", remedy)
    elif len(hosts) > 1:
        raise BadHead("Host occurs more than once", "Host", remedy)
    elif not _is_host(hosts[0]):
        raise BadHead("Host is malformed", "Host", remedy)
    if target.startswith(b"/"):
        return
    absolute = _ABSOLUTE.match(target)
    # RFC 9112: the target's authority replaces Host. A proxy may have checked the other one.
    if absolute is not None:
        if absolute[1].lower() not in _SCHEMES:
            raise BadHead("the request target is no HTTP URL", None, "send the path alone")
        if not hosts or absolute[2].lower() != hosts[0].strip(b" \t").lower():
            raise BadHead("the request target names another host than Host", "Host", remedy)


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Return the path of a request's target, without percent-encoding, and its query.

    >>> split_target(b"/v1/%63heck?a=%20"), split_target(b"http://localhost/json"), split_target(b"*")
    ((b'/v1/check', b'a=%20'), (b'/json', b''), (b'*', b''))
    """
    if not target.startswith(b"/"):
        try:
            url = httptools.parse_url(target)
        except httptools.HttpParserInvalidURLError:
            return target, b""
        return unquote_to_bytes(url.path or b""), url.query or b""
    path, _, query = target.partition(b"?")
    return (unquote_to_bytes(path) if b"%" in path else path), query


@lru_cache(256)
def _is_host(value: bytes) -> bool:
    host = value.strip(b" \t")
    if not host:
        return True
    parts = _HOST.fullmatch(host)
    if parts is None or int(parts["port"] or 0) > _MAX_PORT:
        return False
    if parts["ipv6"] is not None:
        try:
            IPv6Address(parts["ipv6"].decode())
        except AddressValueError:
            return False
    return True


def without_upgrade(
    method: bytes, target: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """Return the bytes of a request's head that no longer asks for another protocol.

    The gateway speaks HTTP/1.1 only. A server may ignore ``Upgrade`` and answer the request (RFC 9110, 7.8).
    """
    lines = [b"%s %s HTTP/%s" % (method, target, version.encode())]
    for name, value in headers:
        if name == b"connection":
            options = (option.strip() for option in value.split(b","))
            value = b", ".join(option for option in options if option.lower() != b"upgrade")
        if name != b"upgrade":
            lines.append(b"%s: %s" % (name, value))
    return b"\r\n".join(lines) + b"\r\n\r\n"
