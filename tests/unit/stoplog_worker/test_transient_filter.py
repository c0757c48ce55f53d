"""Lines about retries are dropped only while retries are normal."""

from __future__ import annotations

import logging

from stoplog_worker.transient_filter import GRACE_S, TransientFilter


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def line(text: str) -> logging.LogRecord:
    return logging.LogRecord("stoplog.kafka", logging.WARNING, "", 0, "%s", (text,), None)


RETRY = line("GETPID [producer-5]: Failed to acquire idempotence PID from broker 1: retrying")


def test_retries_of_a_few_seconds_are_dropped() -> None:
    clock = Clock()
    transient = TransientFilter("acquire idempotence PID", clock)
    assert not transient.filter(RETRY)
    clock.now += GRACE_S - 0.1
    assert not transient.filter(RETRY)


def test_retries_that_continue_are_logged() -> None:
    clock = Clock()
    transient = TransientFilter("acquire idempotence PID", clock)
    transient.filter(RETRY)
    clock.now += GRACE_S
    assert transient.filter(RETRY)
    clock.now += 0.5
    assert transient.filter(RETRY)


def test_retry_long_after_the_last_one_is_the_first_again() -> None:
    clock = Clock()
    transient = TransientFilter("acquire idempotence PID", clock)
    transient.filter(RETRY)
    clock.now += 61
    assert not transient.filter(RETRY)


def test_line_that_is_no_retry_passes() -> None:
    assert TransientFilter("acquire idempotence PID").filter(line("FAIL: Connection refused"))
