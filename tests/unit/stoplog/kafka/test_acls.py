from __future__ import annotations

import pytest

from stoplog.kafka.acls import READ, ROLES, WRITE, Grant, grants
from stoplog.lanes import with_lanes
from stoplog.topics import AUDIT, CHECKS, COPARTITIONED, DEAD_LETTERS, NODES, REPLIES, UPDATES, load_topics

TOPICS = load_topics()


def roles_with(operation: str, topic: str) -> set[str]:
    """Return the roles that may do *operation* on *topic*."""
    return {
        role for role in ROLES for it in grants(role, TOPICS, [""]) if it.name == topic and operation in it[2]
    }


@pytest.mark.parametrize(
    ("topic", "writers", "readers"),
    [
        (
            CHECKS,
            {"gateway", "sdk", "publisher", "admin", "worker", "grower"},
            {"worker", "operator", "grower"},
        ),
        (
            UPDATES,
            {"gateway", "admin", "grower"},
            {"gateway", "sdk", "admin", "worker", "operator", "grower"},
        ),
        (REPLIES, {"worker"}, {"gateway", "sdk", "publisher", "admin", "operator"}),
        (NODES, {"gateway", "sdk", "admin", "worker"}, {"gateway", "sdk", "admin", "worker", "grower"}),
        (AUDIT, {"worker"}, {"gateway", "admin", "operator"}),
        (DEAD_LETTERS, {"worker"}, {"operator"}),
        ("stoplog-counters-changelog", {"worker", "grower"}, {"worker", "operator", "grower"}),
        ("stoplog-policies-changelog", {"worker", "grower"}, {"worker", "operator", "grower"}),
    ],
)
def test_topic_is_written_and_read_by_the_roles_that_need_it(
    topic: str, writers: set[str], readers: set[str]
) -> None:
    assert (roles_with(WRITE, topic), roles_with(READ, topic)) == (writers, readers)


def test_every_topic_of_the_topics_file_is_covered() -> None:
    assert [topic for topic in TOPICS if not roles_with(WRITE, topic)] == []


def test_only_workers_delete_records_and_only_operators_create_topics() -> None:
    assert {topic for topic in TOPICS if roles_with("Delete", topic)} == {"stoplog-counters-changelog"}
    assert roles_with("Delete", "stoplog-counters-changelog") == {"worker"}
    assert all(roles_with("Create", topic) == {"operator"} for topic in TOPICS)


def test_only_growing_adds_partitions_and_only_to_the_topics_that_must_have_equally_many() -> None:
    assert {topic for topic in TOPICS if roles_with("Alter", topic)} == set(COPARTITIONED)
    assert all(roles_with("Alter", topic) == {"grower"} for topic in COPARTITIONED)


def test_worker_joins_the_groups_of_its_lanes() -> None:
    found = [it for it in grants("worker", with_lanes(TOPICS, ["", "b"]), ["", "b"]) if it.kind == "group"]
    joined = [it.name for it in found if it.operations == (READ,)]
    assert joined == ["stoplog", "stoplog-owner", "stoplog-b", "stoplog-b-owner"]


def test_changelogs_of_a_lane_are_granted_like_those_of_the_default_lane() -> None:
    found = {it.name: it.operations for it in grants("worker", with_lanes(TOPICS, ["", "b"]), ["", "b"])}
    for table in ("counters", "policies"):
        assert found[f"stoplog-b-{table}-changelog"] == found[f"stoplog-{table}-changelog"]


def test_publisher_gets_nothing_else() -> None:
    assert grants("publisher", TOPICS, [""]) == [
        Grant("topic", CHECKS, (WRITE,)),
        Grant("topic", REPLIES, (READ,)),
    ]
