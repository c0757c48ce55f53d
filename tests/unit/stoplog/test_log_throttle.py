from __future__ import annotations

import logging

from stoplog.log_throttle import MAX_KEYS, LogThrottle, ThrottleFilter


def record(name: str, text: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "", 0, text, args, None)


def test_admit_with_two_keys_throttles_each_on_its_own() -> None:
    throttle = LogThrottle(1.0, lambda: 0.0)
    assert throttle.admit("reply") == ""
    assert throttle.admit("dead letter") == ""
    assert throttle.admit("reply") is None


def test_admit_after_the_pause_reports_how_many_lines_were_suppressed() -> None:
    now = 0.0
    throttle = LogThrottle(60.0, lambda: now)
    assert [throttle.admit() for _ in range(1_003)] == ["", *[None] * 1_002]
    now = 60.0
    assert throttle.admit() == " (similar lines suppressed: 1,002)"
    now = 120.0
    assert throttle.admit() == ""


def test_admit_with_ever_new_keys_remembers_a_bounded_number() -> None:
    throttle = LogThrottle(600.0, lambda: 0.0)
    for number in range(5 * MAX_KEYS):
        assert throttle.admit(f"correlation id {number}") == ""
    assert len(throttle._entries) <= MAX_KEYS


def test_filter_with_a_repeated_text_passes_it_once_in_a_pause() -> None:
    now = 5.0
    throttled = ThrottleFilter("aiokafka", LogThrottle(600.0, lambda: now))
    denied = record("aiokafka.cluster", "Topic %s is not authorized", "checks")
    assert throttled.filter(denied)
    assert not throttled.filter(denied)
    assert throttled.filter(record("aiokafka.cluster", "Topic %s is not authorized", "replies"))
    now += 599
    assert not throttled.filter(denied)
    now += 1
    assert throttled.filter(denied)


def test_filter_with_a_record_of_another_logger_passes_it() -> None:
    throttled = ThrottleFilter("aiokafka", LogThrottle(600.0, lambda: 0.0))
    for name in ("stoplog.owner", "aiokafkaesque", "root"):
        assert all(throttled.filter(record(name, "the lease ran out")) for _ in range(3))
