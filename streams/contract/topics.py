"""topics.yaml to topics on the broker, and a client id to its partition."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, TopicDescription
from murmurhash2 import murmurhash2

from streams.contract.errors import InvalidInput, TopicError, Unavailable

CHECKS: Final = "checks"
UPDATES: Final = "limit-updates"
REPLIES: Final = "replies"
DEAD_LETTERS: Final = "dead-letters"
NODES: Final = "nodes"
COUNTERS_CHANGELOG: Final = "sluice-counters-changelog"
POLICIES_CHANGELOG: Final = "sluice-policies-changelog"

COPARTITIONED: Final = (CHECKS, UPDATES, COUNTERS_CHANGELOG, POLICIES_CHANGELOG)
"""Whoever owns partition p of one of these owns it of all."""

MAX_LANES: Final = 8
"""Each judges every check: few pay for more than two."""

_TAKEN: Final = ("owner", "restore", "gateway")
"""``sluice-<lane>`` would be the group id of clients that join none; markers are committed under one."""

DEFAULT_FILE: Final = Path(__file__).resolve().parents[2] / "topics.yaml"

_SEED: Final = 0x9747B28C
_TIMEOUT_S: Final = 15.0
_POLL_S: Final = 0.05
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
    if name in ("", "a"):
        return ""
    if not re.fullmatch(r"[a-z0-9]{1,8}", name):
        raise InvalidInput("lane", f"{name!r} cannot name topics", "use 1 to 8 of a-z and 0-9")
    if name in _TAKEN:
        raise InvalidInput("lane", f"{app_id(name)} names something else", "choose another")
    return name


def app_id(lane: str) -> str:
    """What a lane's group and changelogs are named by.

    >>> app_id(""), app_id("b")
    ('sluice', 'sluice-b')
    """
    return f"sluice-{lane}" if lane else "sluice"


def worker_name(lane: str, number: int) -> str:
    """A worker's instance id, unless it is given another: those of all lanes may share a machine.

    >>> worker_name("", 1), worker_name("b", 2)
    ('worker-1', 'worker-b-2')
    """
    return f"worker-{lane}-{number}" if lane else f"worker-{number}"


def changelogs_of(lane: str) -> dict[str, str]:
    """A lane's changelogs, by that of the default lane whose settings each has.

    >>> changelogs_of("b")[COUNTERS_CHANGELOG]
    'sluice-b-counters-changelog'
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


def create_topics(admin: AdminClient, specs: Iterable[TopicSpec]) -> list[str]:
    """Create what is missing, then verify all; returns the names created.

    Raises:
        TopicError: the broker refused, or an existing topic differs (see :func:`verify_topics`).
        Unavailable: no broker answered.
    """
    wanted = {spec.name: spec for spec in specs}
    with _asking("which topics there are"):
        present = admin.list_topics(timeout=_TIMEOUT_S).topics
    new = [
        NewTopic(s.name, s.partitions, s.replication, config=s.config())
        for s in wanted.values()
        if s.name not in present
    ]
    created = []
    futures: dict[str, Future[None]] = admin.create_topics(new, operation_timeout=_TIMEOUT_S) if new else {}
    for name, future in futures.items():
        with _asking(f"to create {name}"):
            try:
                future.result(timeout=_TIMEOUT_S)
                created.append(name)
            except KafkaException as exc:
                error = exc.args[0]
                if error.code() < 0:  # librdkafka's own: the broker has not said a word
                    raise
                if error.name() != "TOPIC_ALREADY_EXISTS":
                    raise TopicError(f"the broker did not create {name}: {error.str()}") from exc
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            verify_topics(admin, wanted.values())
            return created
        except _NotThere:
            # One broker may know of it, and the next one asked not yet.
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)


class _NotThere(TopicError):
    """A topic that no broker, or not the one asked, knows of."""


def verify_topics(admin: AdminClient, specs: Iterable[TopicSpec]) -> None:
    """Compare the broker's topics with *specs*.

    Raises:
        TopicError: one is missing, or differs in partition count or timestamp type: with another count
            clients would be hashed elsewhere, with another clock decisions could not be recomputed.
        Unavailable: no broker answered.
    """
    wanted = {spec.name: spec for spec in specs}
    described = describe(admin, wanted, _TIMEOUT_S)
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in wanted]
    configs = {}
    for resource, future in admin.describe_configs(resources).items():
        with _asking("how the topics are set up"), _present(resource.name):
            configs[resource.name] = future.result(timeout=_TIMEOUT_S)
    for name, spec in wanted.items():
        partitions = len(described[name].partitions)
        if partitions != spec.partitions:
            raise TopicError(
                f"topic {name} has {partitions} partitions and topics.yaml says {spec.partitions}: "
                f"set partitions: {partitions} in topics.yaml, or (losing what it holds) delete the "
                f"topics and run `sluice topics create`; partitions cannot be changed in place"
            )
        stamp = configs[name]["message.timestamp.type"].value
        if stamp != spec.timestamp:
            raise TopicError(
                f"topic {name} has message.timestamp.type={stamp} and needs {spec.timestamp}: stop the "
                f"workers, run `kafka-configs.sh --alter --entity-type topics --entity-name {name} "
                f"--add-config message.timestamp.type={spec.timestamp}`, and start them again"
            )


def describe(
    admin: AdminClient, names: Iterable[str], timeout_s: float = _TIMEOUT_S
) -> dict[str, TopicDescription]:
    """The broker's description (partitions, topic id) of each topic.

    Raises:
        TopicError: one does not exist.
        Unavailable: no broker answered.
    """
    found = {}
    for name, future in admin.describe_topics(TopicCollection(list(names))).items():
        with _asking(f"for topic {name}"), _present(name):
            found[name] = future.result(timeout=timeout_s)
    return found


@contextmanager
def _present(topic: str) -> Iterator[None]:
    """A broker that was asked about *topic* may not know it."""
    try:
        yield
    except KafkaException as exc:
        if exc.args[0].name() != "UNKNOWN_TOPIC_OR_PART":
            raise
        raise _NotThere(f"topic {topic} is not there: run `{_creates(topic)}`") from exc


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Map the client's errors to ours: the broker was asked *what*, and did not tell."""
    try:
        yield
    except TimeoutError as exc:
        raise Unavailable(
            f"no broker answered in time, asked {what}: see that Kafka runs at SLUICE_KAFKA"
        ) from exc
    except KafkaException as exc:
        raise Unavailable(
            f"no answer from Kafka ({exc.args[0].str()}), asked {what}: see that it runs at SLUICE_KAFKA"
        ) from exc


def _creates(topic: str) -> str:
    """The command that makes *topic*."""
    match = re.fullmatch(r"sluice-([a-z0-9]+)-(counters|policies)-changelog", topic)
    return "sluice topics create" + (f" --lane {match[1]}" if match else "")
