"""topics.yaml, read; and the partition of a client."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from stoplog import topics
from stoplog.errors import TopicError, Unavailable
from stoplog.kafka.topic_admin import create_topics, verify_topics
from stoplog.topics import (
    COPARTITIONED,
    COUNTERS_CHANGELOG,
    DEFAULT_FILE,
    MAX_LANES,
    POLICIES_CHANGELOG,
    REPLIES,
    changelogs_of,
    lane_names,
    load_topics,
    partition_of,
    with_lanes,
)

DAY_MS = 86_400_000


def write(tmp_path: Path, **changes: dict[str, object] | None) -> Path:
    """The shipped file with topics changed, or (``None``) left out."""
    raw = yaml.safe_load(DEFAULT_FILE.read_text())
    for name, change in changes.items():
        topic = name.replace("_", "-")
        if change is None:
            del raw["topics"][topic]
        else:
            raw["topics"][topic] |= change
    path = tmp_path / "topics.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_the_shipped_file() -> None:
    specs = load_topics()
    assert {specs[name].partitions for name in COPARTITIONED} == {4}
    assert specs["checks"].timestamp == "LogAppendTime"
    assert specs["stoplog-counters-changelog"].retention_ms == 62 * DAY_MS
    assert specs["stoplog-policies-changelog"].retention_ms == -1
    assert specs["checks"].config() == {
        "cleanup.policy": "delete",
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": str(7 * DAY_MS),
        "max.message.bytes": "1048576",
        "min.insync.replicas": "1",
    }


def test_changelogs_are_not_compacted_at_once() -> None:
    specs = load_topics()
    for name in ("stoplog-counters-changelog", "stoplog-policies-changelog"):
        assert specs[name].config()["min.compaction.lag.ms"] == "600000"


def test_a_topic_left_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(TopicError, match=r"lacks replies: add"):
        load_topics(write(tmp_path, replies=None))


def test_partitions_that_must_agree(tmp_path: Path) -> None:
    with pytest.raises(TopicError, match="same number of partitions"):
        load_topics(write(tmp_path, limit_updates={"partitions": 8}))


def test_other_topics_may_have_partitions_of_their_own(tmp_path: Path) -> None:
    assert load_topics(write(tmp_path, replies={"partitions": 16}))[REPLIES].partitions == 16


@pytest.mark.parametrize(
    "change", [{"retention": "7 weeks"}, {"max_message": "1MB"}, {"partitions": "many"}, {"retention": None}]
)
def test_a_value_that_cannot_be_read_is_shown(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(TopicError, match="cannot be read as topics"):
        load_topics(write(tmp_path, checks=change))


@pytest.mark.parametrize(
    "text", ["", "topics: 3", "topics: {checks: }", "{", "topics: {checks: {partitions: 4}}"]
)
def test_a_file_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "topics.yaml"
    path.write_text(text)
    with pytest.raises(TopicError, match="cannot be read as topics"):
        load_topics(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TopicError, match="nowhere"):
        load_topics(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("client", "hashed"),
    # Kafka's own test values (clients, UtilsTest.testMurmur2).
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ],
)
def test_a_client_goes_where_the_java_client_sends_it(client: str, hashed: int) -> None:
    for partitions in (1, 4, 64):
        assert partition_of(client, partitions) == (hashed & 0x7FFFFFFF) % partitions


def test_a_lane_adds_two_changelogs_with_the_settings_of_the_default_ones() -> None:
    specs = load_topics()
    assert with_lanes(specs, lane_names(1)) == specs
    both = with_lanes(specs, lane_names(2))
    added = sorted(both.keys() - specs.keys())
    assert added == ["stoplog-b-counters-changelog", "stoplog-b-policies-changelog"]
    for default, own in zip((COUNTERS_CHANGELOG, POLICIES_CHANGELOG), added, strict=True):
        assert both[own].name == own
        assert (both[own].partitions, both[own].config()) == (
            specs[default].partitions,
            specs[default].config(),
        )


def test_no_two_lanes_share_a_name_or_a_topic() -> None:
    names = lane_names(MAX_LANES)
    assert len(set(names)) == len(names) == MAX_LANES
    topics = [topic for lane in (*names, "counters", "policies") for topic in changelogs_of(lane).values()]
    assert len(set(topics)) == len(topics)


# --- a broker that does not answer ------------------------------------------------------------


class Silent:
    """In place of an AdminClient: a question ends by the exception given, or (``None``) is never answered."""

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

    def list_topics(self, **_: Any) -> Any:
        if (error := self._answers.get("list_topics")) is not None:
            raise error
        return SimpleNamespace(topics={})


GONE = KafkaException(KafkaError(KafkaError._TRANSPORT))


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ({"list_topics": GONE}, "which topics there are"),
        ({"create_topics": GONE}, "to create checks"),
        ({"create_topics": None}, "to create checks"),
        ({"describe_topics": GONE}, "for topic checks"),
        ({"describe_topics": None}, "for topic checks"),
        ({"describe_configs": GONE}, "how the topics are set up"),
        ({"describe_configs": None}, "how the topics are set up"),
    ],
)
def test_no_answer_is_told_as_one(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, BaseException | None], asked: str
) -> None:
    monkeypatch.setattr(topics, "_TIMEOUT_S", 0.01)
    admin: Any = Silent(**answers)
    with pytest.raises(Unavailable, match=f"asked {asked}: see that .* STOPLOG_KAFKA"):
        create_topics(admin, [load_topics()["checks"]])


@pytest.mark.parametrize("question", ["describe_topics", "describe_configs"])
def test_what_the_broker_asked_does_not_know_is_not_there(
    monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    monkeypatch.setattr(topics, "_TIMEOUT_S", 0.01)
    unknown = KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
    admin: Any = Silent(**{question: unknown})
    with pytest.raises(TopicError, match="topic checks is not there: run `stoplog topics create`"):
        create_topics(admin, [load_topics()["checks"]])


def test_no_broker_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics, "_TIMEOUT_S", 0.5)
    admin = AdminClient({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})
    for ask in (create_topics, verify_topics):
        with pytest.raises(Unavailable, match="see that"):
            ask(admin, [load_topics()["checks"]])
