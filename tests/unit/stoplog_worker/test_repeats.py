from __future__ import annotations

import logging

from stoplog_worker.repeats import Repeats


def record(name: str, text: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "", 0, text, args, None)


def test_a_text_is_let_through_once_in_ten_minutes() -> None:
    now = 5.0
    repeats = Repeats("aiokafka", lambda: now)
    denied = record("aiokafka.cluster", "Topic %s is not authorized", "checks")
    assert repeats.filter(denied)
    assert not repeats.filter(denied)
    assert repeats.filter(record("aiokafka.cluster", "Topic %s is not authorized", "replies"))
    now += 599
    assert not repeats.filter(denied)
    now += 1
    assert repeats.filter(denied)


def test_what_others_say_passes() -> None:
    repeats = Repeats("aiokafka", lambda: 0.0)
    for name in ("stoplog.owner", "aiokafkaesque", "root"):
        assert all(repeats.filter(record(name, "the lease ran out")) for _ in range(3))


def test_what_is_remembered_is_bounded() -> None:
    repeats = Repeats("aiokafka", lambda: 0.0)
    for number in range(5_000):
        assert repeats.filter(record("aiokafka", "correlation id %s", number))
    assert len(repeats._said) <= 1_000
