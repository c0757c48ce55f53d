"""The names of a lane: its group, its changelogs, its workers.

A lane is a set of workers that processes every check on its own. The default lane is called ``a``. Its group
and topics carry no name, so it is the empty text wherever they are built.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from stoplog.errors import InvalidInput
from stoplog.topics import COUNTERS_CHANGELOG, POLICIES_CHANGELOG, TopicSpec

DEFAULT_LANE: Final = "a"
"""Name of the default lane in heartbeats, in the status and in metrics."""

MAX_LANES: Final = 8
"""Lanes that a command can start. Each processes every check, so more than two are rarely worth it."""

_RESERVED: Final = ("owner", "restore", "gateway")
"""``stoplog-<name>`` of these is the group id of a client that joins no group."""


def lane_names(count: int) -> list[str]:
    """Return the first *count* lanes; the default one is the empty text.

    >>> lane_names(3)
    ['', 'b', 'c']
    """
    return ["", *"bcdefgh"][:count]


def lane_of(name: str) -> str:
    """Return the lane that a user calls *name*; the default one is the empty text.

    Raises:
        InvalidInput: A group and topics cannot have this name.

    >>> lane_of("a"), lane_of("b")
    ('', 'b')
    """
    if name in ("", DEFAULT_LANE):
        return ""
    if not re.fullmatch(r"[a-z0-9]{1,8}", name):
        raise InvalidInput("lane", f"{name!r} is not a valid lane name", "use 1 to 8 of a-z and 0-9")
    if name in _RESERVED:
        raise InvalidInput("lane", f"{app_id(name)} is reserved", "choose another name")
    return name


def app_id(lane: str) -> str:
    """Return the name of a lane's group, which is also the prefix of its changelogs.

    >>> app_id(""), app_id("b")
    ('stoplog', 'stoplog-b')
    """
    return f"stoplog-{lane}" if lane else "stoplog"


def worker_name(lane: str, number: int) -> str:
    """Return a worker's default instance id. It names the lane, for workers of all lanes may share a machine.

    >>> worker_name("", 1), worker_name("b", 2)
    ('worker-1', 'worker-b-2')
    """
    return f"worker-{lane}-{number}" if lane else f"worker-{number}"


def changelogs_of(lane: str) -> dict[str, str]:
    """Return a lane's changelogs, each by the default lane's changelog with the same configuration.

    >>> changelogs_of("b")[COUNTERS_CHANGELOG]
    'stoplog-b-counters-changelog'
    """
    return {
        name: name.replace(app_id(""), app_id(lane), 1) for name in (COUNTERS_CHANGELOG, POLICIES_CHANGELOG)
    }


def with_lanes(specs: Mapping[str, TopicSpec], names: Iterable[str]) -> dict[str, TopicSpec]:
    """Return *specs* and the changelogs of the lanes *names*."""
    changelogs = {
        own: msgspec.structs.replace(specs[default], name=own)
        for lane in names
        for default, own in changelogs_of(lane).items()
    }
    return {**specs, **changelogs}
