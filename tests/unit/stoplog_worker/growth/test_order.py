"""The order in which the command looks, changes and looks again. Checks come before what relies on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from stoplog_worker.growth import grow as growing
from stoplog_worker.growth.step import Outcome
from stoplog_worker.settings import Settings

from stoplog.errors import TopicError
from stoplog.wire.partition_count import CountRecord, PartitionCount

ORDER: Final = [
    "members.watch",
    "members.poll",
    "split.read",
    "split.refuse_idle_lanes",
    "step.begin",
    "split.run",
    "step.look_again",
    "split.refuse_new_records",
    "step.finish",
    "step.wait_for_answers",
    "members.checks",
    "tidy up",
]
"""Look, read ahead and refuse; pause; copy; look again directly before the new number is in force, at the
members first, because one that has not paused could write after its partition was looked at; then tidy up."""


class Part:
    """Records the calls of one part of the command, and fails where the test wants it."""

    def __init__(self, name: str, called: Callable[[str], None], **attributes: Any) -> None:
        self._name, self._called = name, called
        self.__dict__.update(attributes)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*_: object) -> Any:
            self._called(f"{self._name}.{method}")
            results = {"run": (3, 2), "poll": [], "checks": 7, "wait_for_answers": True, "lanes": {"a"}}
            return results.get(method)

        return call

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Command:
    """The command whose parts record their calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.fails_at = ""
        split = Part("split", self._called, copied=(9,), lanes=[""])
        step = Part("step", self._called, epoch=1, outcome=Outcome.GIVEN_UP, consequence="it goes on")
        members = Part("members", self._called)

        class Record:
            last = CountRecord(PartitionCount(1))

        for name, part in {
            "ProgressReader": Part("reader", lambda _: None),
            "Writer": Part("writer", lambda _: None),
            "Members": members,
            "Step": step,
            "_Split": split,
            "_record": Record(),
        }.items():
            monkeypatch.setattr(growing, name, lambda *_, part=part: part)
        monkeypatch.setattr(growing, "_tidy_up", lambda *_: self._called("tidy up"))

    def _called(self, name: str) -> None:
        if name != "members.lanes":
            self.calls.append(name)
        if name == self.fails_at:
            raise TopicError("as the test wants")

    def run(self) -> growing.Grown:
        return growing.grow(Settings(topics=Path("topics.yaml")), 2, lambda *_: None)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(monkeypatch)


def test_order_of_the_steps(command: Command) -> None:
    grown = command.run()
    assert command.calls == ORDER
    assert (grown.states, grown.limits, grown.checks, grown.lanes) == (3, 2, 7, 1)


@pytest.mark.parametrize("failed", ORDER[: ORDER.index("step.finish") + 1])
def test_failure_ends_the_command_there_and_ends_a_pause_that_has_begun(
    command: Command, failed: str
) -> None:
    command.fails_at = failed
    with pytest.raises(TopicError, match="as the test wants"):
        command.run()
    before = ORDER[: ORDER.index(failed) + 1]
    pauses = "step.begin" in before
    assert command.calls == [*before, *(["step.give_up"] if pauses else [])]
