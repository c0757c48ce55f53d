"""File descriptors of the process: each connection needs one."""

from __future__ import annotations

import resource
from typing import Final

OTHER_DESCRIPTORS: Final = 128
"""Descriptors kept for everything but HTTP connections: Kafka, gRPC, files, listening sockets."""

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
