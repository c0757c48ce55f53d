from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stoplog.errors import TopicError
from stoplog.lanes import with_lanes
from stoplog.topics import (
    AUDIT,
    COPARTITIONED,
    DEFAULT_FILE,
    REPLIES,
    load_topics,
    with_partitions,
)

DAY_MS = 86_400_000


def write(tmp_path: Path, **changes: dict[str, object] | None) -> Path:
    """Write the shipped file with topics changed, or (``None``) removed."""
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


def test_shipped_file_has_the_documented_configuration() -> None:
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


def test_changelogs_are_compacted_after_ten_minutes() -> None:
    specs = load_topics()
    for name in ("stoplog-counters-changelog", "stoplog-policies-changelog"):
        assert specs[name].config()["min.compaction.lag.ms"] == "600000"


def test_with_partitions_changes_copartitioned_topics_of_every_lane_only() -> None:
    specs = with_partitions(with_lanes(load_topics(), ["b"]), 8)
    changed = {name for name, spec in specs.items() if spec.partitions == 8}
    assert changed == {*COPARTITIONED, "stoplog-b-counters-changelog", "stoplog-b-policies-changelog"}


def test_file_of_an_older_release_gets_an_audit_topic_like_its_checks(tmp_path: Path) -> None:
    shipped = load_topics()[AUDIT]
    assert (shipped.partitions, shipped.retention_ms, shipped.cleanup) == (4, 400 * DAY_MS, "delete")
    assert load_topics(write(tmp_path, audit=None))[AUDIT] == shipped


def test_missing_topic_is_named(tmp_path: Path) -> None:
    with pytest.raises(TopicError, match=r"lacks replies: add"):
        load_topics(write(tmp_path, replies=None))


def test_copartitioned_topics_that_differ_in_partitions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TopicError, match="same number of partitions"):
        load_topics(write(tmp_path, limit_updates={"partitions": 8}))


def test_replies_may_have_another_number_of_partitions(tmp_path: Path) -> None:
    assert load_topics(write(tmp_path, replies={"partitions": 16}))[REPLIES].partitions == 16


@pytest.mark.parametrize(
    "change", [{"retention": "7 weeks"}, {"max_message": "1MB"}, {"partitions": "many"}, {"retention": None}]
)
def test_invalid_value_raises_topic_error(tmp_path: Path, change: dict[str, object]) -> None:
    with pytest.raises(TopicError, match="cannot be read as topics"):
        load_topics(write(tmp_path, checks=change))


@pytest.mark.parametrize(
    "text", ["", "topics: 3", "topics: {checks: }", "{", "topics: {checks: {partitions: 4}}"]
)
def test_malformed_file_raises_topic_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "topics.yaml"
    path.write_text(text)
    with pytest.raises(TopicError, match="cannot be read as topics"):
        load_topics(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TopicError, match="nowhere"):
        load_topics(tmp_path / "nowhere.yaml")
