"""One part of a running `stoplog up`: restarts with a growing delay, and messages that do not repeat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from stoplog_gateway.local.supervised_part import SupervisedPart


class FakePart:
    """A process without a process."""

    name = "worker-1"
    log = Path("worker-1.log")

    def __init__(self) -> None:
        self.status: int | None = None
        self.logged: list[str] = []
        self.starts = 0
        self.start_error: Exception | None = None

    def start(self) -> None:
        self.starts += 1
        if self.start_error is not None:
            raise self.start_error
        self.status = None

    def warnings(self) -> list[str]:
        found, self.logged = self.logged, []
        return found

    def tail(self) -> str:
        return "last line"


class Supervised:
    """A supervised :class:`FakePart` with a clock of its own; ``said`` has what the operator sees."""

    def __init__(self, *, show_tail: bool = False) -> None:
        self.now = 0.0
        self.part = FakePart()
        self.said: list[str] = []
        self.started_at = 0.0
        self.supervised = SupervisedPart(
            self.part, self.start, self.said.append, show_tail=show_tail, clock=lambda: self.now
        )

    def start(self) -> None:
        self.started_at = self.now
        self.part.start()

    def run(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        """Update ten times a second, after *each*."""
        for _ in range(round(seconds * 10)):
            each()
            self.supervised.update()
            self.now += 0.1


def test_part_that_ended_is_started_again_after_the_delay() -> None:
    it = Supervised()
    it.run(1)
    it.part.status = -9
    assert not it.supervised.update()
    assert it.said == ["worker-1 ended (status -9); starting it again in 0.5 s"]
    it.now += 0.4
    assert not it.supervised.update()
    it.now += 0.2
    assert it.supervised.update()
    assert it.part.starts == 1
    assert it.part.status is None
    it.run(5)
    assert it.part.starts == 1


@pytest.mark.parametrize(("status", "delay"), [(2, 0.5), (78, 30.0)])
def test_part_that_cannot_run_is_tried_again_and_shows_its_log(status: int, delay: float) -> None:
    it = Supervised()
    it.part.status = status
    it.run(delay - 0.2)
    assert it.said == [
        f"worker-1 cannot run as it is (status {status}); starting it again in {delay} s; "
        f"the end of worker-1.log:\nlast line"
    ]
    assert it.part.starts == 0
    it.run(0.5)
    assert it.part.starts == 1


def test_part_that_needs_an_operator_is_tried_more_and_more_rarely() -> None:
    it = Supervised()

    def end() -> None:  # after two minutes, because another system has started a worker of the same name
        if it.part.status is None and it.now - it.started_at > 120:
            it.part.status = 78

    it.run(6 * 3_600, each=end)
    assert it.part.starts < 40


def test_part_without_shown_warnings_shows_its_log_whenever_it_ended() -> None:
    it = Supervised(show_tail=True)
    it.part.status = 1
    it.run(0.1)
    assert it.said[0].endswith("; the end of worker-1.log:\nlast line")


def test_part_that_cannot_be_started_is_tried_again() -> None:
    it = Supervised()
    it.part.status, it.part.start_error = -9, OSError("no memory")
    it.run(2.1)
    assert it.said == [
        "worker-1 ended (status -9); starting it again in 0.5 s",
        "worker-1 could not be started (no memory); starting it again in 1.0 s",
        "worker-1 could not be started (no memory); starting it again in 2.0 s",
    ]
    it.part.start_error = None
    it.run(3)
    assert it.part.status is None


def test_part_that_keeps_ending_is_reported_every_ten_minutes() -> None:
    it = Supervised()

    def end() -> None:
        if it.part.status is None:
            it.part.logged.append(f"12:00:{it.now:.0f},000 CRITICAL a: the disk is full")
            it.part.status = 1

    it.run(60, each=end)
    first_minute = len(it.said)
    it.run(3_600, each=end)
    assert it.part.starts > 100
    ends = [line for line in it.said[first_minute:] if "ended (status 1)" in line]
    warnings = [line for line in it.said[first_minute:] if "CRITICAL" in line]
    assert 5 <= len(ends) <= 7
    assert 5 <= len(warnings) <= 7
    assert "similar lines suppressed" in ends[-1]


def test_part_that_runs_again_for_a_while_shows_all_warnings() -> None:
    it = Supervised()
    for _ in range(7):
        it.part.status = 1
        it.run(31)
    it.run(61)
    it.said.clear()
    it.part.logged += ["12:00 WARNING a: careful", "12:01 WARNING a: careful"]
    it.run(0.1)
    assert it.said == ["worker-1 | 12:00 WARNING a: careful", "worker-1 | 12:01 WARNING a: careful"]


def test_part_whose_log_cannot_be_read_goes_on() -> None:
    it = Supervised()

    def fail() -> list[str]:
        raise PermissionError("no")

    it.part.warnings = fail  # type: ignore[method-assign]
    it.run(0.1)
    assert it.said == ["worker-1 |  WARNING its log cannot be read: PermissionError('no')"]
    assert it.part.starts == 0
