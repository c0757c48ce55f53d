"""Failures to start and to stop several processes; tests/e2e/test_gateway_processes.py covers the rest."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, cast

import pytest
from stoplog_gateway.server import prefork
from stoplog_gateway.server.prefork import _stop, _SupervisedProcess, serve_forked
from stoplog_gateway.server.process_slot import ProcessSlot
from stoplog_gateway.settings import GatewaySettings

from stoplog.errors import SettingsError, TopicError


def test_serve_forked_outside_linux_raises_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SettingsError, match=r"STOPLOG_PROCESSES=2: only Linux .* start several gateways"):
        serve_forked(GatewaySettings(processes=2))


def test_serve_forked_without_a_writable_home_raises_with_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "home"
    file.touch()
    with pytest.raises(SettingsError, match="set STOPLOG_HOME to a writable one"):
        serve_forked(GatewaySettings(processes=2, home=file))


def test_stop_kills_a_process_that_outlives_the_stop_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        running = True

        def terminate(self) -> None: ...

        def kill(self) -> None:
            self.running = False

    waits: list[float] = []
    monkeypatch.setattr(signal, "sigtimedwait", lambda _, seconds: waits.append(seconds))
    stuck = Stuck()
    _stop(
        [cast(_SupervisedProcess, stuck)],
        [],
        GatewaySettings(deadline_ms=60_000, publish_timeout_ms=30_000, apply_timeout_ms=40_000).stop_s,
    )
    assert not stuck.running
    assert [100 < seconds < 105 for seconds in waits] == [True]


class Slots:
    """Processes of a gateway that do what *lives* says: one function for each start, in each slot."""

    def __init__(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lives: list[Callable[..., None]]
    ) -> None:
        self.starts = [0] * len(lives)
        read, write = os.pipe()

        def serve(_: GatewaySettings, slot: ProcessSlot, on_serving: Callable[[], None]) -> None:
            lives[slot.number - 1][self.starts[slot.number - 1] - 1](on_serving)

        monkeypatch.setattr(prefork, "serve", serve)
        self.processes = [
            _SupervisedProcess(GatewaySettings(), ProcessSlot(number, 0, tmp_path, read), write)
            for number in range(1, len(lives) + 1)
        ]

    def run(self, until: Callable[[], bool]) -> None:
        """Supervise as the parent does, at ten times the pace."""
        while not until():
            served = any(process.has_served() for process in self.processes)
            for number, process in enumerate(self.processes):
                if process.start_at <= time.monotonic():
                    self.starts[number] += 1
                process.update(ends_at_errors=not served)
            time.sleep(0.01)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            while process.running:
                time.sleep(0.01)


def wrong_topics(_: Callable[[], None]) -> NoReturn:
    raise TopicError("topic checks does not exist")


def serving(on_serving: Callable[[], None]) -> None:
    on_serving()
    time.sleep(60)


def ending(on_serving: Callable[[], None]) -> None:
    on_serving()


@pytest.mark.skipif(sys.platform != "linux", reason="several processes need Linux")
def test_error_of_a_first_process_ends_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(tmp_path, monkeypatch, [wrong_topics], [wrong_topics])
    with pytest.raises(TopicError, match="topic checks does not exist"):
        slots.run(until=lambda: False)
    slots.end()


@pytest.mark.skipif(sys.platform != "linux", reason="several processes need Linux")
def test_error_of_a_restarted_process_leaves_those_that_serve_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slots = Slots(tmp_path, monkeypatch, [ending, wrong_topics, serving], [serving])
    slots.run(until=lambda: slots.starts == [3, 1])
    assert slots.processes[1].running
    slots.end()
    assert [record.getMessage() for record in caplog.records] == [
        "process 1 ended (status 0); starting it again in 0.5 s",
        "process 1 ended (topic checks does not exist); starting it again in 1.0 s",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="several processes need Linux")
def test_process_that_cannot_be_forked_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slots = Slots(tmp_path, monkeypatch, [serving, serving])

    def fail(_: object) -> NoReturn:
        raise OSError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(prefork._fork.Process, "start", fail)
        slots.run(until=lambda: slots.starts == [1])
    slots.run(until=lambda: slots.processes[0].has_served())
    slots.end()
    assert caplog.messages == [
        "process 1 could not be started (Resource temporarily unavailable); starting it again in 0.5 s"
    ]
