"""Topic administration against a broker that does not answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import NewTopic

from stoplog.errors import TopicError, Unavailable
from stoplog.kafka import topic_admin
from stoplog.kafka.clients import silent_admin
from stoplog.kafka.connection import KafkaConnection
from stoplog.kafka.topic_admin import create_topics, verify_topics
from stoplog.topics import load_topics


class Silent:
    """An AdminClient whose requests end with the given exception, or (``None``) never end."""

    def __init__(self, **answers: BaseException | None) -> None:
        self._answers = answers

    def __getattr__(self, question: str) -> Callable[..., Any]:
        def ask(asked: Any = (), **_: Any) -> dict[Any, Future[Any]]:
            future: Future[Any] = Future()
            if question not in self._answers:
                future.set_result(SimpleNamespace(partitions=range(4)))
            elif (error := self._answers[question]) is not None:
                future.set_exception(error)
            names = getattr(asked, "topic_names", asked)
            return {getattr(name, "topic", name): future for name in names}

        return ask

    def explain(self, error: KafkaError) -> str:
        return f"{error.str()}: see STOPLOG_KAFKA"

    def list_topics(self, **_: Any) -> Any:
        if (error := self._answers.get("list_topics")) is not None:
            raise error
        return SimpleNamespace(topics={})


GONE = KafkaException(KafkaError(KafkaError._TRANSPORT))


@pytest.mark.parametrize(
    ("answers", "action"),
    [
        ({"list_topics": GONE}, "list the topics"),
        ({"create_topics": GONE}, "create topic checks"),
        ({"create_topics": None}, "create topic checks"),
        ({"describe_topics": GONE}, "describe topic checks"),
        ({"describe_topics": None}, "describe topic checks"),
        ({"describe_configs": GONE}, "describe the configuration of the topics"),
        ({"describe_configs": None}, "describe the configuration of the topics"),
    ],
)
def test_create_topics_without_an_answer_raises_unavailable(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, BaseException | None], action: str
) -> None:
    monkeypatch.setattr(topic_admin, "_TIMEOUT_S", 0.01)
    admin: Any = Silent(**answers)
    with pytest.raises(Unavailable, match=f"cannot {action}: .* STOPLOG_KAFKA"):
        create_topics(admin, [load_topics()["checks"]])


@pytest.mark.parametrize("question", ["describe_topics", "describe_configs"])
def test_create_topics_that_stay_unknown_raises_topic_error(
    monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    monkeypatch.setattr(topic_admin, "_TIMEOUT_S", 0.01)
    monkeypatch.setattr(topic_admin, "_KNOWN_S", 0.2)
    unknown = KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
    admin: Any = Silent(**{question: unknown})
    with pytest.raises(TopicError, match="topic checks does not exist: run `stoplog topics create`"):
        create_topics(admin, [load_topics()["checks"]])


def test_create_topics_whose_creation_is_forgotten_creates_them_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topic_admin, "_AGAIN_S", 0.0)
    spec = load_topics()["dead-letters"]
    asked: list[list[str]] = []

    class Forgetful(Silent):
        """Its first controller answers that it has created the topic, and ends before it has stored that."""

        def create_topics(self, new: list[NewTopic], **_: Any) -> dict[str, Future[None]]:
            asked.append([topic.topic for topic in new])
            created: Future[None] = Future()
            created.set_result(None)
            return {topic.topic: created for topic in new}

        def describe_topics(self, _: Any, **__: Any) -> dict[str, Future[Any]]:
            described: Future[Any] = Future()
            if len(asked) < 2:
                unknown = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
                described.set_exception(KafkaException(unknown))
            else:
                described.set_result(SimpleNamespace(partitions=range(spec.partitions)))
            return {spec.name: described}

        def describe_configs(self, resources: list[Any]) -> dict[Any, Future[Any]]:
            found: Future[Any] = Future()
            found.set_result({"message.timestamp.type": SimpleNamespace(value=spec.timestamp)})
            return dict.fromkeys(resources, found)

    admin: Any = Forgetful()
    assert create_topics(admin, [spec]) == [spec.name]
    assert asked == [[spec.name]] * 2


def test_create_and_verify_without_a_broker_raise_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_admin, "_CONNECT_S", 0.5)
    admin = silent_admin(KafkaConnection("127.0.0.1:1"))
    for ask in (create_topics, verify_topics):
        with pytest.raises(Unavailable, match="STOPLOG_KAFKA to where it runs"):
            ask(admin, [load_topics()["checks"]])
