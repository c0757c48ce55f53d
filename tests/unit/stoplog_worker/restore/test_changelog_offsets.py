"""Offsets that brokers know, and the reasons why others are missing."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, TopicPartition
from stoplog_worker.restore import changelog_offsets
from stoplog_worker.restore.changelog_offsets import ChangelogOffsets
from stoplog_worker.state.store import COUNTERS, POLICIES

from stoplog.kafka.connection import KafkaConnection
from stoplog.topics import CHECKS, COUNTERS_CHANGELOG, POLICIES_CHANGELOG, UPDATES

CHANGELOGS = {COUNTERS: COUNTERS_CHANGELOG, POLICIES: POLICIES_CHANGELOG}
AWAY = KafkaException(KafkaError(KafkaError._TRANSPORT))


class Admin:
    """Answers with *offset* for each place; an exception fails that place."""

    def __init__(self, offset: Callable[[TopicPartition], int | Exception]) -> None:
        self._offset = offset

    def list_offsets(self, places: dict[TopicPartition, Any], *, request_timeout: float) -> dict[Any, Any]:
        assert places
        assert request_timeout > 0
        answers: dict[Any, Future[Any]] = {place: Future() for place in places}
        for place, answer in answers.items():
            offset = self._offset(place)
            if isinstance(offset, Exception):
                answer.set_exception(offset)
            else:
                answer.set_result(SimpleNamespace(offset=offset))
        return answers


@pytest.fixture
def connect(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[TopicPartition], int | Exception]], ChangelogOffsets]:
    def with_answers(offset: Callable[[TopicPartition], int | Exception]) -> ChangelogOffsets:
        monkeypatch.setattr("stoplog.kafka.clients.silent_admin", lambda _: Admin(offset))
        return ChangelogOffsets(KafkaConnection("nowhere"), CHANGELOGS)

    return with_answers


def test_ends_of_partitions_are_by_partition_and_table(connect: Any) -> None:
    offsets = connect(lambda place: 10 * place.partition + (place.topic == POLICIES_CHANGELOG))
    ends, _ = offsets.ends([1, 2])
    assert ends == {1: {COUNTERS: 10, POLICIES: 11}, 2: {COUNTERS: 20, POLICIES: 21}}


def test_ends_of_no_partition_asks_nothing(connect: Any) -> None:
    assert connect(lambda _: AWAY).ends([]) == ({}, "")


def test_ends_without_leader_are_missing_with_reason(connect: Any) -> None:
    offsets = connect(lambda place: OFFSET_INVALID if place.topic == COUNTERS_CHANGELOG else 3)
    assert offsets.ends([1]) == ({1: {POLICIES: 3}}, "a partition has no leader")


def test_earliest_with_broker_away_is_missing_with_reason(connect: Any) -> None:
    place = TopicPartition(CHECKS, 0)
    found, reason = connect(lambda _: AWAY).earliest([place])
    assert found == {}
    assert reason.startswith("offsets cannot be read: ")


def test_topic_ids_cover_every_topic_of_the_marker(connect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        changelog_offsets,
        "describe",
        lambda _, names, __: {name: SimpleNamespace(topic_id=f"{name}-id") for name in names},
    )
    names = (CHECKS, UPDATES, COUNTERS_CHANGELOG, POLICIES_CHANGELOG)
    assert connect(lambda _: 0).topic_ids() == {name: f"{name}-id" for name in names}
