"""A partition is not continued with state that belongs to a deleted topic."""

from __future__ import annotations

from typing import Any

import pytest
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.consumer.startup_checks import check_topics
from stoplog_worker.restore.restorer import Restored
from stoplog_worker.state.store import COUNTERS, POLICIES

from stoplog.errors import TopicRecreated
from stoplog.policy import parse_policy
from tests.support.memory_store import MemoryStore

CHANGELOGS = {COUNTERS: "counters-changelog", POLICIES: "policies-changelog"}
IDS = {COUNTERS: "id-c", POLICIES: "id-p"}


def marker(**ids: Any) -> Marker:
    fields = {"topic_id": "id-checks", "updates_id": "id-updates", "changelog_ids": IDS, **ids}
    return Marker(7, 0, -1, -1, default=parse_policy("5/minute"), **fields)


def check(stored: Marker | None, store: MemoryStore | None = None) -> None:
    restored = Restored(1, store or MemoryStore(), "id-checks", "id-updates", IDS, 0)
    check_topics(restored, stored, CHANGELOGS)


def test_marker_of_the_same_topics_is_accepted() -> None:
    check(marker())


def test_partition_without_marker_and_counters_is_accepted() -> None:
    check(None)


def test_marker_of_an_older_worker_without_some_ids_is_accepted() -> None:
    check(marker(updates_id="", changelog_ids={}))


@pytest.mark.parametrize(
    ("ids", "named", "also_deletes_checks"),
    [
        ({"topic_id": "old"}, "topic checks with id old", False),
        ({"updates_id": "old"}, "topic limit-updates with id old", True),
        ({"changelog_ids": {**IDS, COUNTERS: "old"}}, "topic counters-changelog with id old", False),
        ({"changelog_ids": {**IDS, POLICIES: "old"}}, "topic policies-changelog with id old", False),
    ],
)
def test_marker_of_a_deleted_topic_is_refused_with_the_remedy(
    ids: dict[str, Any], named: str, also_deletes_checks: bool
) -> None:
    with pytest.raises(TopicRecreated, match=f"{named}, which was deleted.*stop all workers") as caught:
        check(marker(**ids))
    assert ("changelogs and `checks`" in str(caught.value)) == also_deletes_checks


def test_counters_without_marker_are_refused() -> None:
    store = MemoryStore()
    store.next_offset[COUNTERS] = 1
    with pytest.raises(TopicRecreated, match="policies-changelog, which was deleted"):
        check(None, store)
