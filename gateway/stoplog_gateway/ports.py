"""TCP ports on this machine."""

from __future__ import annotations

import errno
import socket
from random import randrange
from typing import Final

from stoplog.errors import StoplogError

MAX_PORT: Final = 65_535
_LISTENED: Final = (10_000, 32_768)

_Address = tuple[str | int, ...] | tuple[int, bytes]


class CannotListen(StoplogError):
    """A server could not listen there; the text says why, and what to do."""


def url_of(host: str, port: int) -> str:
    """Of what listens there.

    >>> url_of("127.0.0.1", 8080), url_of("::1", 8080)
    ('http://127.0.0.1:8080', 'http://[::1]:8080')
    """
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def ensure_free(port: int, host: str) -> None:
    """Return if a gateway could listen on *port* of *host* now.

    Raises:
        CannotListen: it could not.
    """
    for sock in bound(port, host):
        sock.close()


def bound(port: int, host: str, *, shared: bool = False) -> list[socket.socket]:
    """Sockets on *port*, one for each address that *host* stands for; they do not listen yet.

    Args:
        port: 0: any free one, another for each address.
        host: As servers read it: none means all addresses, and a name all that it stands for.
        shared: Others of the same user may be bound there as well, if they share it too; each new connection
            goes to one of those that listen, by a hash of its addresses (``SO_REUSEPORT``).

    Raises:
        CannotListen: nobody could; the text says why, and what to do.
    """
    sockets: list[socket.socket] = []
    for family, address in _places(port, host):
        try:
            sockets.append(_bound(family, address, shared=shared))
        except OSError as exc:
            for sock in sockets:
                sock.close()
            raise CannotListen(_told(exc, port, host)) from exc
    return sockets


def claimed(port: int, host: str) -> list[socket.socket]:
    """Sockets that hold *port* of *host* against others that claim it, until they are closed; Linux only.

    Those who share a port do not hinder each other: without a claim, two groups that start at once would
    share it, perhaps on different brokers. Nothing is left of a claim when its process is gone.

    Raises:
        CannotListen: another has it; or as :func:`bound`.
    """
    sockets: list[socket.socket] = []
    for name in {str(address[0]) for _, address in _places(port, host)}:
        sock = socket.socket(socket.AF_UNIX)
        sockets.append(sock)
        try:
            sock.bind(f"\0stoplog-gateway {name} {port}")  # no file: a name in the port's own namespace
        except OSError as exc:
            for one in sockets:
                one.close()
            raise CannotListen(_told(exc, port, host)) from exc
    return sockets


def is_free(port: int) -> bool:
    """Whether a server could listen on *port* of 127.0.0.1 now."""
    try:
        _bound(socket.AF_INET, ("127.0.0.1", port)).close()
    except (OSError, OverflowError):
        return False
    return True


def _places(port: int, host: str) -> list[tuple[int, _Address]]:
    if port > MAX_PORT:
        raise CannotListen(f"port {port} is past the last one, {MAX_PORT}: set STOPLOG_PORT lower")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise CannotListen(
            f"STOPLOG_HOST={host} cannot be resolved ({exc}): set it to an address of this machine"
        ) from exc
    return [(family, address) for family, _, _, _, address in found]


def _bound(family: int, address: _Address, *, shared: bool = False) -> socket.socket:
    sock = socket.socket(family)
    try:
        # As servers do: the last one's closing connections are no hindrance.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _told(exc: OSError, port: int, host: str) -> str:
    match exc.errno:
        case errno.EADDRINUSE:
            return f"port {port} is taken: set STOPLOG_PORT to a free one, or stop what listens there"
        case errno.EADDRNOTAVAIL:
            return (
                f"STOPLOG_HOST={host} is no address of this machine: set it to one that is, or to 0.0.0.0 for "
                f"all of them"
            )
        case errno.EACCES | errno.EPERM:
            return f"port {port} is reserved to root: set STOPLOG_PORT to one from 1024 on"
        case _:
            return f"port {port} of {host} cannot be listened on ({exc.strerror}): see STOPLOG_HOST, STOPLOG_PORT"


def free_port() -> int:
    """A port that nothing listens on at this moment.

    It is none of those that systems give to outgoing connections (from 32,768 on): one of these might have it
    before the server that it is meant for.
    """
    while not is_free(port := randrange(*_LISTENED)):
        pass
    return port
