"""Topics on the broker: create them, verify them against topics.yaml, describe them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, TopicDescription

from stoplog.errors import TopicError, Unavailable
from stoplog.topics import TopicSpec

_TIMEOUT_S: Final = 15.0

_POLL_S: Final = 0.05


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
                f"topics and run `stoplog topics create`; partitions cannot be changed in place"
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
            f"no broker answered in time, asked {what}: see that Kafka runs at STOPLOG_KAFKA"
        ) from exc
    except KafkaException as exc:
        raise Unavailable(
            f"no answer from Kafka ({exc.args[0].str()}), asked {what}: see that it runs at STOPLOG_KAFKA"
        ) from exc


def _creates(topic: str) -> str:
    """The command that makes *topic*."""
    match = re.fullmatch(r"stoplog-([a-z0-9]+)-(counters|policies)-changelog", topic)
    return "stoplog topics create" + (f" --lane {match[1]}" if match else "")
