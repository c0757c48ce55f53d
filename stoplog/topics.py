"""The topics: their names, and their configuration in topics.yaml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from stoplog.errors import TopicError

CHECKS: Final = "checks"
UPDATES: Final = "limit-updates"
REPLIES: Final = "replies"
DEAD_LETTERS: Final = "dead-letters"
NODES: Final = "nodes"
AUDIT: Final = "audit"
COUNTERS_CHANGELOG: Final = "stoplog-counters-changelog"
POLICIES_CHANGELOG: Final = "stoplog-policies-changelog"

COPARTITIONED: Final = (CHECKS, UPDATES, AUDIT, COUNTERS_CHANGELOG, POLICIES_CHANGELOG)
"""Topics with the same number of partitions: a worker that owns partition p of one owns it of all."""

_AUDIT: Final = {
    "timestamp": "LogAppendTime",
    "cleanup": "delete",
    "retention": "400d",
    "max_message": "1MiB",
}
"""The topic ``audit`` where a topics.yaml of release 0.2.0 lacks it."""

_FILES: Final = (Path(__file__).with_name("topics.yaml"), Path(__file__).resolve().parents[1] / "topics.yaml")

DEFAULT_FILE: Final = next((file for file in _FILES if file.exists()), _FILES[0])
"""The shipped topics file: in the package once installed, at the root of a checkout."""

_DURATION_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2}


class TopicSpec(msgspec.Struct, frozen=True):
    """One topic of topics.yaml. Durations are in ms, sizes in bytes; -1 means without end."""

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
    copartitioned: bool = False
    """Whether its partitions correspond to those of ``checks``."""

    def config(self) -> dict[str, str]:
        """Return the topic's configuration in Kafka's names."""
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


def load_topics(path: Path = DEFAULT_FILE) -> dict[str, TopicSpec]:
    """Return the topics of topics.yaml by name.

    Raises:
        TopicError: The file is missing or malformed, or copartitioned topics differ in their partitions.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    return parse_topics(data, path)


def parse_topics(data: bytes, path: Path) -> dict[str, TopicSpec]:
    """Return the topics in the content of topics.yaml by name; *path* is for the error text.

    Raises:
        TopicError: The content is malformed, or copartitioned topics differ in their partitions.
    """
    try:
        raw = yaml.safe_load(data)
        defaults = raw.get("defaults", {})
        topics = {AUDIT: {**_AUDIT, "partitions": raw["topics"][CHECKS]["partitions"]}, **raw["topics"]}
        specs = {name: _spec(name, {**defaults, **body}) for name, body in topics.items()}
    except (
        *(yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError),
        *(OverflowError, RecursionError),  # an infinite number, and content that is nested too deeply
    ) as exc:
        raise _unreadable(path, exc) from exc
    needed = {*COPARTITIONED, REPLIES, DEAD_LETTERS, NODES}
    if missing := sorted(needed - specs.keys()):
        raise TopicError(f"{path} lacks {', '.join(missing)}: add them as in the topics.yaml that is shipped")
    if len({specs[name].partitions for name in COPARTITIONED}) > 1:
        raise TopicError(f"{path}: {', '.join(COPARTITIONED)} must have the same number of partitions")
    return specs


def _unreadable(path: Path, exc: Exception) -> TopicError:
    return TopicError(
        f"{path} cannot be read as topics ({exc!r}): compare it with the topics.yaml that is shipped"
    )


def required_partitions(path: Path, specs: Mapping[str, TopicSpec]) -> int | None:
    """Return the number of partitions that the operator's topics.yaml requires.

    ``None`` for the shipped file: its number is only for new topics, and says nothing about existing ones.

    Args:
        path: The file.
        specs: Its topics.
    """
    return None if path == DEFAULT_FILE else specs[CHECKS].partitions


def with_partitions(specs: Mapping[str, TopicSpec], partitions: int) -> dict[str, TopicSpec]:
    """Return *specs* with *partitions* partitions for each copartitioned topic."""
    return {
        name: msgspec.structs.replace(spec, partitions=partitions) if spec.copartitioned else spec
        for name, spec in specs.items()
    }


def _spec(name: str, body: Mapping[str, Any]) -> TopicSpec:
    for field in ("partitions", "replication", "min_insync"):
        if int(body[field]) < 1:
            raise ValueError(f"{field} of {name} is below 1")
    return TopicSpec(
        name=name,
        partitions=int(body["partitions"]),
        replication=int(body["replication"]),
        min_insync=int(body["min_insync"]),
        timestamp=str(body["timestamp"]),
        cleanup=str(body["cleanup"]),
        retention_ms=_amount(body["retention"], _DURATION_MS),
        max_message=_amount(body["max_message"], _SIZE),
        delete_retention_ms=_duration_ms(body.get("delete_retention")),
        min_compaction_lag_ms=_duration_ms(body.get("min_compaction_lag")),
        segment=_amount(body["segment"], _SIZE) if "segment" in body else None,
        copartitioned=name in COPARTITIONED,
    )


def _duration_ms(value: Any) -> int | None:
    return None if value is None else _amount(value, _DURATION_MS)


def _amount(value: Any, units: Mapping[str, int]) -> int:
    if value == -1:
        return -1
    match = re.fullmatch(r"([0-9]+)([A-Za-z]+)", str(value))
    if match is None or match[2] not in units:
        raise ValueError(f"{value!r}: use a number and one of {', '.join(units)}")
    return int(match[1]) * units[match[2]]
