"""topics.yaml to topics on the broker, and a client id to its partition."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from murmurhash2 import murmurhash2

from stoplog.errors import InvalidInput, TopicError

CHECKS: Final = "checks"
UPDATES: Final = "limit-updates"
REPLIES: Final = "replies"
DEAD_LETTERS: Final = "dead-letters"
NODES: Final = "nodes"
COUNTERS_CHANGELOG: Final = "stoplog-counters-changelog"
POLICIES_CHANGELOG: Final = "stoplog-policies-changelog"

COPARTITIONED: Final = (CHECKS, UPDATES, COUNTERS_CHANGELOG, POLICIES_CHANGELOG)
"""Whoever owns partition p of one of these owns it of all."""

DEFAULT_LANE: Final = "a"
"""Name of the default lane in heartbeats, status and metrics. Its topics and group carry no name."""

MAX_LANES: Final = 8
"""Each judges every check: few pay for more than two."""

_TAKEN: Final = ("owner", "restore", "gateway")
"""``stoplog-<lane>`` would be the group id of clients that join none; markers are committed under one."""

_FILES: Final = (Path(__file__).with_name("topics.yaml"), Path(__file__).resolve().parents[1] / "topics.yaml")

DEFAULT_FILE: Final = next((file for file in _FILES if file.exists()), _FILES[0])
"""The topics file that is shipped: in the package once installed, at the root of a checkout."""

_SEED: Final = 0x9747B28C
_DURATION_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2}


class TopicSpec(msgspec.Struct, frozen=True):
    """One topic of topics.yaml; durations in ms, sizes in bytes, -1 for no end."""

    name: str
    partitions: int
    replication: int
    min_insync: int
    timestamp: str
    cleanup: str
    retention_ms: int
    max_message: int
    delete_retention_ms: int | None = None
    min_compaction_lag_ms: int | None = None
    segment: int | None = None

    def config(self) -> dict[str, str]:
        """The broker's settings for this topic (Kafka's names)."""
        config = {
            "cleanup.policy": self.cleanup,
            "message.timestamp.type": self.timestamp,
            "retention.ms": str(self.retention_ms),
            "max.message.bytes": str(self.max_message),
            "min.insync.replicas": str(self.min_insync),
        }
        if self.delete_retention_ms is not None:
            config["delete.retention.ms"] = str(self.delete_retention_ms)
        if self.min_compaction_lag_ms is not None:
            config["min.compaction.lag.ms"] = str(self.min_compaction_lag_ms)
        if self.segment is not None:
            config["segment.bytes"] = str(self.segment)
        return config


def partition_of(client: str, partitions: int) -> int:
    """The partition of *client*: murmur2 of its UTF-8, as the Java client's default partitioner.

    >>> partition_of("alice", 4), partition_of("zoë", 64)
    (1, 12)
    """
    return int(murmurhash2(client.encode(), _SEED) & 0x7FFFFFFF) % partitions


def home_of(kind: str, id_: str, partitions: int) -> int:
    """The partition of ``limit-updates`` in which the updates of a plan or the default are put in order.

    >>> home_of("default", "", 4), home_of("plan", "gold", 4)
    (1, 2)
    """
    return partition_of(f"{kind}/{id_}", partitions)


def load_topics(path: Path = DEFAULT_FILE) -> dict[str, TopicSpec]:
    """Read topics.yaml.

    Raises:
        TopicError: missing, not of the form, or partition counts that must agree and do not.
    """
    try:
        raw = yaml.safe_load(path.read_text())
        defaults = raw.get("defaults", {})
        specs = {name: _spec(name, {**defaults, **body}) for name, body in raw["topics"].items()}
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as exc:
        raise TopicError(f"{path} cannot be read as topics: {exc!r}") from exc
    needed = {*COPARTITIONED, REPLIES, DEAD_LETTERS, NODES}
    if missing := sorted(needed - specs.keys()):
        raise TopicError(f"{path} lacks {', '.join(missing)}: add them as in the file shipped")
    if len({specs[name].partitions for name in COPARTITIONED}) > 1:
        raise TopicError(f"{path}: {', '.join(COPARTITIONED)} must have the same number of partitions")
    return specs


def _spec(name: str, body: Mapping[str, Any]) -> TopicSpec:
    return TopicSpec(
        name=name,
        partitions=int(body["partitions"]),
        replication=int(body["replication"]),
        min_insync=int(body["min_insync"]),
        timestamp=str(body["timestamp"]),
        cleanup=str(body["cleanup"]),
        retention_ms=_amount(body["retention"], _DURATION_MS),
        max_message=_amount(body["max_message"], _SIZE),
        delete_retention_ms=_optional(body.get("delete_retention")),
        min_compaction_lag_ms=_optional(body.get("min_compaction_lag")),
        segment=_amount(body["segment"], _SIZE) if "segment" in body else None,
    )


def _optional(value: Any) -> int | None:
    return None if value is None else _amount(value, _DURATION_MS)


def _amount(value: Any, units: Mapping[str, int]) -> int:
    if value == -1:
        return -1
    match = re.fullmatch(r"([0-9]+)([A-Za-z]+)", str(value))
    if match is None or match[2] not in units:
        raise ValueError(f"{value!r}: use a number and one of {', '.join(units)}")
    return int(match[1]) * units[match[2]]


def lane_names(count: int) -> list[str]:
    """The lanes of a system that has *count* of them: the default one has no name.

    >>> lane_names(3)
    ['', 'b', 'c']
    """
    return ["", *"bcdefgh"][:count]


def lane_of(name: str) -> str:
    """The lane that *name* stands for: the default one may be called a.

    Raises:
        InvalidInput: it cannot name a group and topics.

    >>> lane_of("a"), lane_of("b")
    ('', 'b')
    """
    if name in ("", DEFAULT_LANE):
        return ""
    if not re.fullmatch(r"[a-z0-9]{1,8}", name):
        raise InvalidInput("lane", f"{name!r} cannot name topics", "use 1 to 8 of a-z and 0-9")
    if name in _TAKEN:
        raise InvalidInput("lane", f"{app_id(name)} names something else", "choose another")
    return name


def app_id(lane: str) -> str:
    """What a lane's group and changelogs are named by.

    >>> app_id(""), app_id("b")
    ('stoplog', 'stoplog-b')
    """
    return f"stoplog-{lane}" if lane else "stoplog"


def worker_name(lane: str, number: int) -> str:
    """A worker's instance id, unless it is given another: those of all lanes may share a machine.

    >>> worker_name("", 1), worker_name("b", 2)
    ('worker-1', 'worker-b-2')
    """
    return f"worker-{lane}-{number}" if lane else f"worker-{number}"


def changelogs_of(lane: str) -> dict[str, str]:
    """A lane's changelogs, by that of the default lane whose settings each has.

    >>> changelogs_of("b")[COUNTERS_CHANGELOG]
    'stoplog-b-counters-changelog'
    """
    return {
        name: name.replace(app_id(""), app_id(lane), 1) for name in (COUNTERS_CHANGELOG, POLICIES_CHANGELOG)
    }


def with_lanes(specs: Mapping[str, TopicSpec], names: Iterable[str]) -> dict[str, TopicSpec]:
    """*specs*, and the changelogs of the lanes *names*."""
    of_lanes = {
        own: msgspec.structs.replace(specs[default], name=own)
        for lane in names
        for default, own in changelogs_of(lane).items()
    }
    return {**specs, **of_lanes}
