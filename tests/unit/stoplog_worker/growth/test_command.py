"""How the command ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from stoplog_worker.growth import command
from stoplog_worker.growth.grow import Grown

from stoplog.errors import TopicError
from stoplog.wire.partition_count import PartitionCount


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def noted(error: BaseException) -> BaseException:
    error.add_note("clients are now hashed over 4 partitions")
    return error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_command_says_what_has_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def interrupted(*_: Any) -> None:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as exc:
            raise noted(exc) from None

    monkeypatch.setattr(command, "grow", interrupted)
    assert command.main(["4"]) == command.EXIT_INTERRUPTED
    assert "stoplog: interrupted. clients are now hashed over 4 partitions" in capsys.readouterr().err


def test_command_that_fails_says_what_has_changed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failed(*_: Any) -> None:
        raise noted(TopicError("copying failed"))

    monkeypatch.setattr(command, "grow", failed)
    assert command.main(["4"]) == command.EXIT_FAILED
    assert "stoplog: copying failed. clients are now hashed over 4 partitions" in capsys.readouterr().err


def test_command_under_nohup_goes_on_without_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def failed(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        raise TopicError("the end")

    monkeypatch.setattr(command, "grow", failed)
    assert command.main(["4"]) == command.EXIT_FAILED


def test_command_that_has_nothing_to_do_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = PartitionCount(4, 2)
    monkeypatch.setattr(command, "grow", lambda *_: Grown(count, count, 0, 0, 0, 0.1))
    assert command.main(["4"]) == 0
    assert capsys.readouterr().out == "clients are hashed over 4 partitions already\n"
