"""Tell programs on the same machine from everyone else, by the header fields of a request.

A request is foreign if ``Host`` is no loopback name or address (DNS rebinding), if ``Origin`` is not the
gateway's own address (pages of other sites), or if a proxy forwarded it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

_FORWARDED: Final = frozenset(
    (
        b"cdn-loop",
        b"via",
        b"x-amzn-trace-id",
        b"x-appengine-user-ip",
        b"x-azure-clientip",
        b"x-cloud-trace-context",
        b"x-nginx-proxy",
        b"x-real-ip",
        b"x-remote-addr",
        b"x-rewrite-url",
        b"x-varnish",
    )
)
"""Header fields that proxies, CDNs and clouds add to the requests that they forward."""

_FORWARDED_PREFIXES: Final = (
    b"cf-",
    b"cloudfront-",
    b"fastly-",
    b"x-akamai-",
    b"x-amz-cf-",
    b"x-arr-",
    b"x-envoy-",
    b"x-original-",
    b"x-proxy",
    b"x-vercel-",
)
_FORWARDED_ENDINGS: Final = (b"client-ip", b"connection-ip", b"remote-ip")
_FORWARDED_PART: Final = b"forward"


def foreign_field(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, str] | None:
    """Return name and value of the header field that makes a request foreign; ``None`` for a local request.

    Args:
        headers: Header fields, with names in lower case.
    """
    host: bytes | None = None
    origin: bytes | None = None
    for name, value in headers:
        if not tells_origin(name):
            continue
        if name == b"host":
            host = value.strip()
        elif name == b"origin":
            origin = value
        else:
            return name.decode("latin-1").title(), value.decode("latin-1")
    # Browsers always send Host. Health checks with HTTP/1.0, as HAProxy's by default, send none.
    if host is not None and not _is_local(host):
        return "Host", host.decode("latin-1")
    if origin is not None and (host is None or origin.lower() not in _addresses(host.lower())):
        return "Origin", origin.decode("latin-1")
    return None


def _addresses(host: bytes) -> tuple[bytes, bytes]:
    return b"http://" + host, b"https://" + host


@lru_cache(1_024)
def tells_origin(name: bytes) -> bool:
    """Return whether :func:`foreign_field` depends on the field *name*, which is in lower case."""
    return (
        name in (b"host", b"origin")
        or name in _FORWARDED
        or name.startswith(_FORWARDED_PREFIXES)
        or name.endswith(_FORWARDED_ENDINGS)
        or _FORWARDED_PART in name
    )


@lru_cache(256)
def _is_local(host: bytes) -> bool:
    return is_loopback(_without_port(host.decode("latin-1")))


def is_loopback(host: str) -> bool:
    """Return whether *host* is reachable only from this machine. The only trusted name is ``localhost``.

    >>> [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "127.9.9.9")]
    [True, True, True, True]
    >>> [is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "", "127.0.0.1.example.com")]
    [False, False, False, False, False]
    """
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower() == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
