"""TCP ports of this machine: bind and claim them, find free ones, and explain errors."""

from __future__ import annotations

import errno
import socket
import sys
from random import randrange
from typing import Final

from stoplog.errors import StoplogError

MAX_PORT: Final = 65_535
_FREE_PORTS: Final = (10_000, 32_768)
"""Range of :func:`free_port`: below the ports that systems assign to connections (from 32,768)."""

_SETTINGS: Final = "STOPLOG_"
"""Beginnings of the names of a gateway's two settings."""

_Address = tuple[str | int, ...] | tuple[int, bytes]


class CannotListen(StoplogError):
    """A server cannot listen on an address. The message states the cause and a remedy."""


def url_of(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL of a server that listens on *host* and *port*.

    >>> url_of("127.0.0.1", 8080), url_of("::1", 8080)
    ('http://127.0.0.1:8080', 'http://[::1]:8080')
    """
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def ensure_free(port: int, host: str) -> None:
    """Check that a gateway can listen on *port* of *host* now.

    Raises:
        CannotListen: It cannot.
    """
    for sock in bind_port(port, host):
        sock.close()


def bind_port(port: int, host: str, *, shared: bool = False) -> list[socket.socket]:
    """Return bound sockets that do not listen yet, one for each address that *host* resolves to.

    The socket of ``::`` accepts connections over IPv4 too.

    Args:
        port: 0 binds any free port, a different one for each address.
        host: An address or a name. An empty string means all addresses.
        shared: Set ``SO_REUSEPORT``: other processes of the same user can bind the same address if they set
            it too. The kernel assigns each new connection to one of the listening sockets, by a hash of the
            connection's addresses.

    Raises:
        CannotListen: An address cannot be bound.
    """
    sockets: list[socket.socket] = []
    for family, address in _addresses(port, host):
        try:
            sockets.append(_bind(family, address, shared=shared, dual_stack=host == "::"))
        except OSError as exc:
            for sock in sockets:
                sock.close()
            raise CannotListen(_explain(exc, port, host)) from exc
    return sockets


def claim_port(port: int, host: str, claimant: str) -> list[socket.socket]:
    """Return sockets that claim *port* of *host* against other callers with the same *claimant*. Linux only.

    A port that is free now may be taken when the server listens on it, seconds later. And ``SO_REUSEPORT``
    does not separate groups of processes: two gateways that start at the same time would share the port,
    perhaps with different brokers. The claim ends when the sockets are closed or the process ends.

    Args:
        port: The port.
        host: An address or a name. An empty string means all addresses.
        claimant: The kind of program that claims the port. `stoplog up` does so for its gateways, which
            claim it themselves when they start.

    Raises:
        CannotListen: Another process holds the claim, or *host* cannot be resolved.
    """
    sockets: list[socket.socket] = []
    names = {str(address[0]) for _, address in _addresses(port, host)}
    for name in names | ({"0.0.0.0"} if host == "::" else set()):
        sock = socket.socket(socket.AF_UNIX)
        sockets.append(sock)
        try:
            # An abstract socket: it leaves no file, and it belongs to the network namespace of the port.
            sock.bind(f"\0stoplog-{claimant} {name} {port}")
        except OSError as exc:
            for opened in sockets:
                opened.close()
            raise CannotListen(_explain(exc, port, host)) from exc
    return sockets


def listen(port: int, host: str, settings: str) -> socket.socket:
    """Return a listening socket for a child process, which inherits it.

    No other process can get the port between the choice of it and the start of the child.

    Args:
        port: 0 chooses any free port.
        host: An address or a name; of several addresses, the first one is taken.
        settings: Beginning of the names of the two settings, for the error text.

    Raises:
        CannotListen: The port or the address cannot be used.
    """
    family, address = _addresses(port, host, settings)[0]
    try:
        sock = _bind(family, address)
        try:
            sock.listen()
        except BaseException:
            sock.close()
            raise
    except OSError as exc:
        raise CannotListen(_explain(exc, port, host, settings)) from exc
    return sock


def is_free(port: int) -> bool:
    """Return whether a server can listen on *port* of 127.0.0.1 now."""
    try:
        _bind(socket.AF_INET, ("127.0.0.1", port)).close()
    except (OSError, OverflowError):
        return False
    return True


def free_port() -> int:
    """Return a free port of 127.0.0.1, and hold it for this process and its children until this process ends.

    Nothing else gets the port: no other call of this function, in any process, and no outgoing connection. A
    server of this process or of a child can listen on it, if it sets ``SO_REUSEADDR`` as servers do. Only
    Linux allows that, so elsewhere nothing holds the port.
    """
    while True:
        sock = socket.socket()
        port = randrange(*_FREE_PORTS)
        try:
            sock.bind(("127.0.0.1", port))  # without SO_REUSEADDR, so it fails if another process holds it
        except OSError:
            sock.close()
            continue
        if sys.platform == "linux":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.detach()  # the descriptor stays open
        else:
            sock.close()
        return port


def _addresses(port: int, host: str, settings: str = _SETTINGS) -> list[tuple[int, _Address]]:
    if port > MAX_PORT:
        raise CannotListen(f"port {port} is above the highest port, {MAX_PORT}: set {settings}PORT lower")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise CannotListen(
            f"{settings}HOST={host} cannot be resolved ({exc}): set it to an address of this machine"
        ) from exc
    return [(family, address) for family, _, _, _, address in found]


def _bind(family: int, address: _Address, *, shared: bool = False, dual_stack: bool = False) -> socket.socket:
    sock = socket.socket(family)
    try:
        # As servers do: connections of an earlier server that are still closing do not block the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # An empty host has an address of each family. Only :: alone includes IPv4.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not dual_stack))
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def _explain(exc: OSError, port: int, host: str, settings: str = _SETTINGS) -> str:
    match exc.errno:
        case errno.EADDRINUSE:
            return f"port {port} is taken: set {settings}PORT to a free one, or stop the server that uses it"
        case errno.EADDRNOTAVAIL:
            return (
                f"{settings}HOST={host} is not an address of this machine: set it to one that is, or to "
                f"0.0.0.0 for all addresses"
            )
        case errno.EACCES | errno.EPERM:
            return f"port {port} is reserved for root: set {settings}PORT to 1024 or higher"
        case _:
            return (
                f"cannot listen on port {port} of {host} ({exc.strerror}): see {settings}HOST, {settings}PORT"
            )
