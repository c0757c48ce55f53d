"""aiokafka's lines in a worker's log."""

from __future__ import annotations

import logging

import pytest
from stoplog_worker.outage_filter import outage_filter


def record(logger: str, text: str) -> logging.LogRecord:
    return logging.LogRecord(logger, logging.ERROR, "", 0, "%s", (text,), None)


@pytest.mark.parametrize(
    ("logger", "text"),
    [  # as aiokafka 0.14 logged them when the broker was killed
        ("aiokafka", "Unable to update metadata from [1]"),
        ("aiokafka", "Unable connect to node with id 1: [Errno 111] Connect call failed ('127.0.0.1', 9092)"),
        (
            "aiokafka.consumer.group_coordinator",
            "Error sending _Heartbeat to node 1 [NodeNotReadyError: Attempt to send a request to node which "
            "is not ready (node id 1).] -- marking coordinator dead",
        ),
        (
            "aiokafka.consumer.group_coordinator",
            "Group Coordinator Request failed: KafkaConnectionError: Connection at 127.0.0.1:9092 closed",
        ),
    ],
)
def test_lines_about_a_broker_that_is_away_are_dropped(logger: str, text: str) -> None:
    assert not outage_filter(record(logger, text))
    assert outage_filter(record("stoplog.membership", text))
    assert outage_filter(record("aiokafkaesque", text))


def test_other_errors_of_the_group_pass() -> None:
    text = "Group Coordinator Request failed: [Error 30] GroupAuthorizationFailedError: stoplog"
    assert outage_filter(record("aiokafka.consumer.group_coordinator", text))
