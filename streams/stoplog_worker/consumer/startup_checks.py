"""Refuse to continue a partition whose stored state belongs to a deleted topic."""

from __future__ import annotations

from collections.abc import Mapping

from stoplog.errors import TopicRecreated
from stoplog.topics import CHECKS, UPDATES
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.recovery_instructions import REBUILD_FROM_LOG, START_EMPTY
from stoplog_worker.restore.restorer import Restored
from stoplog_worker.state.store import COUNTERS, POLICIES


def check_topics(restored: Restored, marker: Marker | None, changelogs: Mapping[str, str]) -> None:
    """Compare the topic ids in the stored marker with those of the topics that exist now.

    Args:
        restored: The partition, as the restorer hands it over.
        marker: The marker in its store; ``None`` if there is none.
        changelogs: The changelog topic of each table.

    Raises:
        TopicRecreated: a topic was deleted and created again, and the others remain.
    """
    store = restored.store
    if marker is None:
        # A partition's first checkpoint writes the marker before any counter. Expired counters leave the
        # tables, but the changelog's offset remains.
        if store.next_offset[COUNTERS] > 0:
            raise TopicRecreated(
                f"partition {store.partition} has counters but no marker. The marker and the limits were in "
                f"topic {changelogs[POLICIES]}, which was deleted. If that was intended: {REBUILD_FROM_LOG}"
            )
        return
    if marker.topic_id != restored.topic_id:
        raise TopicRecreated(
            f"the counters of partition {store.partition} belong to topic {CHECKS} with id "
            f"{marker.topic_id}, which was deleted; its id is now {restored.topic_id}. If that was "
            f"intended: {REBUILD_FROM_LOG}"
        )
    for table, topic in changelogs.items():
        known, now = marker.changelog_ids.get(table), restored.changelog_ids[table]
        if known not in (None, now):
            raise TopicRecreated(
                f"the {table} of partition {store.partition} were in topic {topic} with id {known}, which "
                f"was deleted; its id is now {now}, and the new topic lacks the older records. If that was "
                f"intended: {REBUILD_FROM_LOG}"
            )
    if marker.updates_id not in ("", restored.updates_id):
        raise TopicRecreated(
            f"the limits of partition {store.partition} belong to topic {UPDATES} with id "
            f"{marker.updates_id}, which was deleted; its id is now {restored.updates_id}, and its updates "
            f"would be mistaken for known ones. If that was intended: {START_EMPTY}"
        )
