"""TCP ports on this machine."""

from __future__ import annotations

import errno
import socket
from typing import Final

from streams.contract.errors import SluiceError

MAX_PORT: Final = 65_535


class CannotListen(SluiceError):
    """A server could not listen there; the text says why, and what to do."""


def ensure_free(port: int, host: str) -> None:
    """Return if a gateway could listen on *port* of *host* now.

    Raises:
        CannotListen: it could not.
    """
    if port > MAX_PORT:
        raise CannotListen(f"port {port} is past the last one, {MAX_PORT}: set SLUICE_PORT lower")
    try:
        # As servers do: no host means all addresses, and a name all that it stands for.
        places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise CannotListen(
            f"SLUICE_HOST={host} cannot be resolved ({exc}): set it to an address of this machine"
        ) from exc
    for family, _, _, _, address in places:
        try:
            _listen(family, address)
        except OSError as exc:
            raise CannotListen(_told(exc, port, host)) from exc


def is_free(port: int) -> bool:
    """Whether a server could listen on *port* of 127.0.0.1 now."""
    try:
        _listen(socket.AF_INET, ("127.0.0.1", port))
    except (OSError, OverflowError):
        return False
    return True


def _listen(family: int, address: tuple[str | int, ...] | tuple[int, bytes]) -> None:
    with socket.socket(family) as sock:
        # As servers do: the last one's closing connections are no hindrance.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)


def _told(exc: OSError, port: int, host: str) -> str:
    match exc.errno:
        case errno.EADDRINUSE:
            return f"port {port} is taken: set SLUICE_PORT to a free one, or stop what listens there"
        case errno.EADDRNOTAVAIL:
            return (
                f"SLUICE_HOST={host} is no address of this machine: set it to one that is, or to 0.0.0.0 for "
                f"all of them"
            )
        case errno.EACCES | errno.EPERM:
            return f"port {port} is reserved to root: set SLUICE_PORT to one from 1024 on"
        case _:
            return (
                f"port {port} of {host} cannot be listened on ({exc.strerror}): see SLUICE_HOST, SLUICE_PORT"
            )


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
