"""Create the topics of topics.yaml on the broker, verify them, describe them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import ConfigResource, NewPartitions, NewTopic, TopicDescription

from stoplog.errors import TopicError, Unavailable
from stoplog.kafka.clients import ExplainingAdmin
from stoplog.topics import TopicSpec

_TIMEOUT_S: Final = 15.0
"""Seconds that one request to the broker may take."""

_CONNECT_S: Final = 5.0
"""Seconds until no broker counts as reachable. The error appears within 10 s of a start."""

_KNOWN_S: Final = 60.0
"""Seconds within which every broker should know a topic that was created. Three busy brokers that create a
thousand replicas together take more than ten."""

_AGAIN_S: Final = 5.0
"""Seconds after which a topic that is missing is created again. If another controller takes over meanwhile,
it may not know what the former one has answered."""

_LANE_CHANGELOG: Final = re.compile(r"stoplog-([a-z0-9]+)-(?:counters|policies)-changelog")

_POLL_S: Final = 0.05
"""Seconds between two looks for a topic that was just created."""


def create_topics(admin: ExplainingAdmin, specs: Iterable[TopicSpec], *, recorded: bool = False) -> list[str]:
    """Create the missing topics of *specs*, then verify all of them; return the names created.

    Args:
        admin: An admin client.
        specs: The topics.
        recorded: See :func:`verify_topics`.

    Raises:
        TopicError: The broker refused, or an existing topic differs (see :func:`verify_topics`).
        Unavailable: No broker answered.
    """
    wanted = {spec.name: spec for spec in specs}
    created = _create_missing(admin, wanted)
    deadline = time.monotonic() + _KNOWN_S
    again = time.monotonic() + _AGAIN_S
    while True:
        try:
            verify_topics(admin, wanted.values(), recorded=recorded)
            return created
        except _MissingTopic:
            # A broker may learn of the topic later than the broker that created it.
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
            if time.monotonic() > again:
                created += [name for name in _create_missing(admin, wanted) if name not in created]
                again = time.monotonic() + _AGAIN_S


def _create_missing(admin: ExplainingAdmin, wanted: dict[str, TopicSpec]) -> list[str]:
    """Create the topics that the broker does not list; return the names of those that did not exist."""
    with _mapped_errors(admin, "list the topics"):
        present = admin.list_topics(timeout=_CONNECT_S).topics
    new = [
        NewTopic(s.name, s.partitions, s.replication, config=s.config())
        for s in wanted.values()
        if s.name not in present
    ]
    created = []
    futures: dict[str, Future[None]] = admin.create_topics(new, operation_timeout=_TIMEOUT_S) if new else {}
    for name, future in futures.items():
        with _mapped_errors(admin, f"create topic {name}"):
            try:
                future.result(timeout=_TIMEOUT_S)
                created.append(name)
            except KafkaException as exc:
                error = exc.args[0]
                if error.code() < 0:  # librdkafka's own error: no broker has answered
                    raise
                if error.name() != "TOPIC_ALREADY_EXISTS":
                    raise TopicError(
                        f"the broker refused to create topic {name} ({error.str()}): see its log, and the "
                        f"replication and min_insync of topics.yaml"
                    ) from exc
    return created


class _MissingTopic(TopicError):
    """A topic does not exist, or the broker that was asked does not know it yet."""


def verify_topics(
    admin: ExplainingAdmin, specs: Iterable[TopicSpec], *, recorded: bool = False
) -> dict[str, int]:
    """Compare the broker's topics with *specs*; return the number of partitions of each.

    Further partitions of a topic are not used, and are no error.

    Args:
        admin: An admin client.
        specs: The topics.
        recorded: Whether the partitions of copartitioned topics in *specs* are those of the record in
            ``limit-updates``. Otherwise they are those of topics.yaml.

    Raises:
        TopicError: A topic is missing, has too few partitions, or has other timestamps, with which a replay
            would decide differently.
        Unavailable: No broker answered.
    """
    with _mapped_errors(admin, "verify the topics"):
        admin.list_topics(timeout=_CONNECT_S)
    wanted = {spec.name: spec for spec in specs}
    described = describe(admin, wanted, _TIMEOUT_S)
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in wanted]
    configs = {}
    for resource, future in admin.describe_configs(resources).items():
        with _mapped_errors(admin, "describe the configuration of the topics"), _missing_named(resource.name):
            configs[resource.name] = future.result(timeout=_TIMEOUT_S)
    found = {name: len(described[name].partitions) for name in wanted}
    for name, spec in wanted.items():
        if found[name] < spec.partitions:
            raise _too_few(spec, found[name], recorded=recorded)
        stamp = configs[name]["message.timestamp.type"].value
        if stamp != spec.timestamp:
            raise TopicError(
                f"topic {name} has message.timestamp.type={stamp} and needs {spec.timestamp}: stop the "
                f"workers, run `kafka-configs.sh --alter --entity-type topics --entity-name {name} "
                f"--add-config message.timestamp.type={spec.timestamp}`, and start them again"
            )
    return found


def _too_few(spec: TopicSpec, found: int, *, recorded: bool) -> TopicError:
    name, needed = spec.name, spec.partitions
    if not spec.copartitioned:
        return TopicError(
            f"topic {name} has {found} partitions, but topics.yaml requires {needed}: set partitions: "
            f"{found} in topics.yaml, or run `kafka-topics.sh --alter --topic {name} --partitions {needed}`"
        )
    if recorded:
        return TopicError(
            f"topic {name} has {found} partitions, but clients are hashed over {needed}. The topic was "
            f"deleted and created again, or `stoplog topics grow` had no right to see it: delete it, and run "
            f"`{_create_command(name)}`, which creates it with {needed} partitions"
        )
    return TopicError(
        f"topic {name} has {found} partitions, but topics.yaml requires {needed}: set partitions: {found} in "
        f"topics.yaml, or (losing what it holds) delete the topics and run `stoplog topics create`"
    )


def add_partitions(admin: ExplainingAdmin, names: Iterable[str], partitions: int) -> None:
    """Give each topic that has fewer *partitions* more of them, and wait until the broker knows them.

    Raises:
        TopicError: A topic does not exist, or the broker refused.
        Unavailable: No broker answered.
    """
    found = describe(admin, names)
    small = [
        NewPartitions(name, partitions) for name, topic in found.items() if len(topic.partitions) < partitions
    ]
    for name, future in (admin.create_partitions(small) if small else {}).items():
        with _mapped_errors(admin, f"add partitions to topic {name}"):
            try:
                future.result(timeout=_TIMEOUT_S)
            except KafkaException as exc:
                if exc.args[0].code() < 0:
                    raise
                raise TopicError(
                    f"the broker refused to add partitions to topic {name} ({exc.args[0].str()}): see its log"
                ) from exc
    deadline = time.monotonic() + _KNOWN_S
    while any(len(topic.partitions) < partitions for topic in describe(admin, found).values()):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the brokers do not know the new partitions after {_KNOWN_S:g} s: see their logs"
            )
        time.sleep(_POLL_S)


def topic_names(admin: ExplainingAdmin) -> set[str]:
    """Return the names of all topics.

    Raises:
        Unavailable: No broker answered.
    """
    with _mapped_errors(admin, "list the topics"):
        return set(admin.list_topics(timeout=_CONNECT_S).topics)


def lanes_of(topics: Iterable[str]) -> list[str]:
    """Return the lanes that have changelogs among *topics*, the default one (the empty text) first.

    >>> lanes_of({"checks", "stoplog-b-counters-changelog", "stoplog-counters-changelog"})
    ['', 'b']
    """
    named = (_LANE_CHANGELOG.fullmatch(name) for name in topics)
    return ["", *sorted({match[1] for match in named if match is not None})]


def describe(
    admin: ExplainingAdmin, names: Iterable[str], timeout_s: float = _TIMEOUT_S
) -> dict[str, TopicDescription]:
    """Return the broker's description of each topic (partitions, topic id).

    Raises:
        TopicError: A topic does not exist.
        Unavailable: No broker answered.
    """
    found = {}
    for name, future in admin.describe_topics(TopicCollection(list(names))).items():
        with _mapped_errors(admin, f"describe topic {name}"), _missing_named(name):
            found[name] = future.result(timeout=timeout_s)
    return found


@contextmanager
def _missing_named(topic: str) -> Iterator[None]:
    """Turn the broker's error about an unknown topic into one that names *topic* and the remedy."""
    try:
        yield
    except KafkaException as exc:
        if exc.args[0].name() != "UNKNOWN_TOPIC_OR_PART":
            raise
        raise _MissingTopic(f"topic {topic} does not exist: run `{_create_command(topic)}`") from exc


@contextmanager
def _mapped_errors(admin: ExplainingAdmin, action: str) -> Iterator[None]:
    """Turn the client's errors into :class:`Unavailable`; *action* completes "cannot ..."."""
    try:
        yield
    except TimeoutError as exc:
        why = admin.explain(KafkaError(KafkaError._TIMED_OUT))
        raise Unavailable(f"cannot {action}: {why}") from exc
    except KafkaException as exc:
        raise Unavailable(f"cannot {action}: {admin.explain(exc.args[0])}") from exc


def _create_command(topic: str) -> str:
    """Return the command that creates *topic*."""
    match = _LANE_CHANGELOG.fullmatch(topic)
    return "stoplog topics create" + (f" --lane {match[1]}" if match else "")
