"""A worker waits for its group's coordinator before it joins."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from stoplog_worker.kafka.group_coordinator import wait_for_coordinator

from stoplog.errors import Unavailable

NOT_AVAILABLE = KafkaError.COORDINATOR_NOT_AVAILABLE


class Admin:
    """An admin client that answers with these errors, and then with a description; counts the questions."""

    def __init__(self, *errors: int) -> None:
        self._errors = list(errors)
        self.asked = 0

    def describe_consumer_groups(self, groups: list[str], **_: Any) -> dict[str, Future[Any]]:
        self.asked += 1
        future: Future[Any] = Future()
        if self._errors:
            future.set_exception(KafkaException(KafkaError(self._errors.pop(0))))
        else:
            future.set_result(object())
        return dict.fromkeys(groups, future)


def wait(admin: Any, timeout_s: float = 5.0) -> None:
    wait_for_coordinator(admin, "stoplog", timeout_s)


def test_wait_repeats_the_question_until_a_broker_coordinates_the_group() -> None:
    admin = Admin(NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_COORDINATOR)
    wait(admin)
    assert admin.asked == 4


@pytest.mark.parametrize("code", [KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.GROUP_ID_NOT_FOUND])
def test_answer_of_a_coordinator_ends_the_wait_even_if_it_refuses(code: int) -> None:
    admin = Admin(code)
    wait(admin)
    assert admin.asked == 1


def test_coordinator_that_stays_unavailable_is_reported_with_the_remedy() -> None:
    with pytest.raises(Unavailable, match=r"no broker coordinates the group stoplog .*__consumer_offsets"):
        wait(Admin(*[NOT_AVAILABLE] * 100), timeout_s=0.2)


@pytest.mark.parametrize("code", [KafkaError._TIMED_OUT, KafkaError._TRANSPORT])
def test_silent_brokers_are_asked_again_and_then_reported(code: int) -> None:
    admin = Admin(code)
    wait(admin)
    assert admin.asked == 2
    with pytest.raises(Unavailable, match="check that Kafka is running"):
        wait(Admin(*[code] * 100), timeout_s=0.2)
