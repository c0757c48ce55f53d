"""File descriptors of the process: each connection needs one."""

from __future__ import annotations

import resource
from typing import Final, NamedTuple

from stoplog.errors import SettingsError

OTHER_DESCRIPTORS: Final = 128
"""Descriptors kept for everything but callers' connections: Kafka, files, listening sockets, and connections
that are being accepted or closed."""

MIN_CONNECTIONS: Final = 32
"""Callers' connections without which a gateway does not start."""

_GRPC_SHARE: Final = 4
"""One in so many connections may be one of gRPC. Envoy opens one for each of its threads."""

_MAX: Final = 1 << 20
"""Highest limit to ask for. Some systems call their hard limit infinite and refuse it."""


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, and return the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX if hard == resource.RLIM_INFINITY else min(hard, _MAX)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _MAX if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted


class MaxConnections(NamedTuple):
    """Maximum numbers of connections of one process."""

    http: int
    grpc: int


def max_connections(limit: int, *, grpc: bool) -> MaxConnections:
    """Divide the descriptors of the process.

    Args:
        limit: Maximum number of open files.
        grpc: Whether the process serves gRPC.

    Raises:
        SettingsError: The limit is too low.
    """
    callers = limit - OTHER_DESCRIPTORS
    if callers < MIN_CONNECTIONS:
        raise SettingsError(
            f"the limit of open files is {limit}, and a gateway process needs "
            f"{OTHER_DESCRIPTORS + MIN_CONNECTIONS}: raise the hard limit (ulimit -Hn, LimitNOFILE= of "
            f"systemd, --ulimit nofile= of Docker)"
        )
    of_grpc = callers // _GRPC_SHARE if grpc else 0
    return MaxConnections(callers - of_grpc, of_grpc)
