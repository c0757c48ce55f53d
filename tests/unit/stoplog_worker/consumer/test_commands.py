"""Commands for the consumer thread."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from stoplog_worker.consumer.commands import CommandQueue

from stoplog.errors import Unavailable


def test_command_runs_in_order_and_its_future_has_the_result() -> None:
    commands = CommandQueue()
    ran: list[str] = []

    def command(name: str) -> Callable[[], str]:
        def run() -> str:
            ran.append(name)
            return name.upper()

        return run

    futures = [commands.call(command(name)) for name in "abc"]
    assert ran == []
    commands.run_pending()
    assert ran == ["a", "b", "c"]
    assert [future.result(0) for future in futures] == ["A", "B", "C"]


def test_command_that_raises_fails_its_future_and_the_thread() -> None:
    commands = CommandQueue()
    future = commands.call(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        commands.run_pending()
    assert isinstance(future.exception(0), ZeroDivisionError)


def test_closed_queue_refuses_waiting_and_later_commands() -> None:
    commands = CommandQueue()
    waiting = commands.call(int)
    commands.close()
    later = commands.call(int)
    for future in (waiting, later):
        assert isinstance(future.exception(0), Unavailable)
