"""Commands that grow at the same time, lost confirmations and signals, around each write of the record."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from stoplog_worker.growth import grow as grow_module
from stoplog_worker.growth import owned_record as module
from stoplog_worker.growth import step as step_module
from stoplog_worker.growth.owned_record import OwnedRecord, Superseded
from stoplog_worker.growth.step import Outcome, Step, abort

from stoplog.errors import TopicError, Unavailable
from stoplog.wire.partition_count import (
    CountRecord,
    GrowthStep,
    PartitionCount,
    decode_partition_count,
    encode_partition_count,
)

BEFORE, AFTER = PartitionCount(2), PartitionCount(4, 2)


class Log:
    """The record in the topic. Functions in ``during`` are called by the next writes, one each."""

    def __init__(self) -> None:
        self.value = encode_partition_count(BEFORE)
        self.writes = 0
        self.readable = True
        self.during: list[Callable[[bytes], None]] = []

    def read_record(self) -> CountRecord:
        if not self.readable:
            raise Unavailable("no broker answers")
        return decode_partition_count(self.value)

    def write(self, _: Any, count: PartitionCount, step: GrowthStep) -> None:
        value = encode_partition_count(count, step)
        self.writes += 1
        if self.during:
            self.during.pop(0)(value)
        else:
            self.value = value

    def owned(self) -> OwnedRecord:
        return OwnedRecord(None, self, self.read_record())  # type: ignore[arg-type]


class NoMembers:
    """A system that is stopped."""

    next_offset = 0

    def poll(self) -> list[Any]:
        return []

    def lanes(self) -> set[str]:
        return set()

    def wait(self, *_: Any) -> None:
        pass


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    monkeypatch.setattr(module, "write_partition_count", log.write)
    monkeypatch.setattr(step_module, "PartitionCountReader", lambda _: log)
    return log


def step_of(log: Log) -> Step:
    return Step(log.owned(), NoMembers(), AFTER)  # type: ignore[arg-type]


def run(step: Step, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Do what the command does with the record; call *meanwhile* in the pause."""
    with grow_module._consequence(step), grow_module._giving_up(step):
        step.begin()
        meanwhile()
        step.look_again()
        step.finish((5, 7))


def notes(caught: pytest.ExceptionInfo[BaseException]) -> str:
    return " ".join(getattr(caught.value, "__notes__", []))


def in_force(log: Log) -> int:
    return log.read_record().count.partitions


def test_step_is_recorded_with_the_token_of_its_command(log: Log) -> None:
    step = step_of(log)
    outcomes = [step.outcome]
    step.begin()
    outcomes.append(step.outcome)
    found = log.read_record()
    assert (found.count, found.step.epoch, found.step.to, found.step.draining) == (BEFORE, 1, 4, True)
    assert len(found.step.token) == 16
    step.finish((5, 7))
    assert [*outcomes, step.outcome] == [Outcome.UNCHANGED, Outcome.WAITING, Outcome.IN_FORCE]
    assert log.read_record() == CountRecord(
        PartitionCount(4, 2, (5, 7)), GrowthStep(1, token=found.step.token)
    )
    assert log.writes == 3


def test_command_that_read_before_another_one_finished_changes_nothing(log: Log) -> None:
    late = step_of(log)
    run(step_of(log))
    with pytest.raises(Superseded, match="another `stoplog topics grow`"):
        run(late)
    assert (in_force(log), log.writes) == (4, 3)


def test_commands_with_the_same_number_are_told_apart(log: Log) -> None:
    first, second = step_of(log), step_of(log)
    first.begin()
    with pytest.raises(Superseded):
        run(second)
    run_rest = step_of(log)  # a third one takes the step over, as after a kill
    run_rest.begin()
    with pytest.raises(Superseded):
        first.look_again()
    with pytest.raises(Superseded):
        first.finish((5, 7))
    with pytest.raises(Superseded):
        first.give_up()
    run_rest.finish((5, 7))
    assert in_force(log) == 4


def test_record_of_another_command_directly_after_the_write_ends_this_one(log: Log) -> None:
    other = encode_partition_count(BEFORE, GrowthStep(1, 4, token=log.owned().token))

    def overwritten(_: bytes) -> None:
        log.value = other

    log.during.append(overwritten)
    with pytest.raises(Superseded):
        run(step_of(log))
    assert log.value == other


def test_command_that_was_aborted_leaves_the_old_number(log: Log) -> None:
    step = step_of(log)
    step.begin()
    aborted = abort(None)  # type: ignore[arg-type]
    assert aborted is not None
    assert aborted.step.to == 4
    writes = log.writes
    with pytest.raises(Superseded), grow_module._giving_up(step):
        step.finish((5, 7))
    assert (in_force(log), log.writes) == (2, writes)
    assert abort(None) is None  # type: ignore[arg-type]


def test_abort_after_the_end_of_the_step_does_not_put_the_old_number_back(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = step_of(log)
    step.begin()
    draining = log.read_record()
    step.finish((5, 7))
    reads = [draining]

    class Reader:
        def read_record(self) -> CountRecord:
            return reads.pop() if reads else log.read_record()

    monkeypatch.setattr(step_module, "PartitionCountReader", lambda _: Reader())
    with pytest.raises(Superseded):
        abort(None)  # type: ignore[arg-type]
    assert in_force(log) == 4


def test_failure_in_the_pause_puts_the_old_number_back(log: Log) -> None:
    step = step_of(log)

    def fail() -> None:
        raise TopicError("copying failed")

    with pytest.raises(TopicError, match="copying") as caught:
        run(step, fail)
    found = log.read_record()
    assert (found.count, found.step.epoch, found.step.under_way) == (BEFORE, 1, False)
    assert "still hashed over 2 partitions" in notes(caught)


def test_refusal_before_the_first_write_leaves_the_record_alone(log: Log) -> None:
    step = step_of(log)
    with (
        pytest.raises(KeyboardInterrupt) as caught,
        grow_module._consequence(step),
        grow_module._giving_up(step),
    ):
        raise KeyboardInterrupt
    assert log.writes == 0
    assert notes(caught) == "nothing has changed"


def lost(log: Log, *, stored: bool, readable: bool = True) -> Callable[[bytes], None]:
    """Return a write whose confirmation is lost."""

    def write(value: bytes) -> None:
        if stored:
            log.value = value
        log.readable = readable
        raise Unavailable("not written within 60 s")

    return write


def test_end_whose_confirmation_is_lost_is_looked_up(log: Log) -> None:
    step = step_of(log)
    step.begin()
    log.during.append(lost(log, stored=True))
    step.finish((5, 7))
    assert (in_force(log), step.outcome) == (4, Outcome.IN_FORCE)


def test_end_that_was_not_stored_is_given_up(log: Log) -> None:
    step = step_of(log)
    with pytest.raises(Unavailable, match="60 s") as caught:
        run(step, lambda: log.during.append(lost(log, stored=False)))
    assert not log.read_record().step.under_way
    assert (in_force(log), step.outcome) == (2, Outcome.GIVEN_UP)
    assert "still hashed over 2 partitions" in notes(caught)


@pytest.mark.parametrize("stored", [True, False])
def test_end_that_cannot_be_looked_up_is_not_given_up_blindly(log: Log, stored: bool) -> None:
    step = step_of(log)
    with pytest.raises(Unavailable) as caught:
        run(step, lambda: log.during.append(lost(log, stored=stored, readable=False)))
    assert step.outcome is Outcome.UNKNOWN
    assert log.writes == 3
    assert "unknown whether 2 or 4 partitions are in force" in notes(caught)
    assert "run the same command again" in notes(caught)
    log.readable = True
    step.give_up()
    assert in_force(log) == (4 if stored else 2)


def test_old_number_that_cannot_be_recorded_is_reported(log: Log) -> None:
    step = step_of(log)

    def fail() -> None:
        log.readable = False
        raise TopicError("copying failed")

    with pytest.raises(TopicError, match="copying") as caught:
        run(step, fail)
    assert "old number could not be recorded (no broker answers)" in notes(caught)
    assert "still wait" in notes(caught)
    assert "stoplog topics grow --abort" in notes(caught)


@pytest.fixture
def python_handles_sigint() -> Iterator[None]:
    """Let SIGINT raise ``KeyboardInterrupt``, whatever an earlier test has left."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_sigint")
def test_signal_during_the_last_write_waits_for_its_outcome(log: Log) -> None:
    step = step_of(log)

    def interrupted(value: bytes) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        log.value = value

    with pytest.raises(KeyboardInterrupt) as caught:
        run(step, lambda: log.during.append(interrupted))
    assert (in_force(log), log.writes, step.outcome) == (4, 3, Outcome.IN_FORCE)
    assert "now hashed over 4 partitions: run the same command again" in notes(caught)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_program_without_the_right_to_write_has_changed_nothing(log: Log) -> None:
    def refused(_: bytes) -> None:
        raise PermissionError("not authorized")

    step = step_of(log)
    log.during.append(refused)
    with pytest.raises(PermissionError):
        run(step)
    assert (log.writes, step.outcome) == (1, Outcome.UNCHANGED)
