"""One part of a running `stoplog up`: started again when it ends, whatever the other parts do.

The supervisor calls each part in turn. No call waits and none raises, so a part that cannot run delays and
ends no other part: without a broker, the gateways go on to fail open.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from stoplog.log_throttle import LogThrottle
from stoplog_gateway.local.child_process import CONFIG_EXIT, USAGE_EXITS
from stoplog_gateway.local.log_file import SHOWN_LEVELS
from stoplog_gateway.server.restart_backoff import RestartBackoff

_REPEAT_S: Final = 600.0
"""Seconds between two identical lines about a part that keeps ending."""


class Part(Protocol):
    """A process, as the supervisor sees it."""

    @property
    def name(self) -> str:
        """Its name on the terminal."""

    @property
    def log(self) -> Path:
        """Its log, for the operator."""

    @property
    def status(self) -> int | None:
        """Its exit status; ``None`` while it runs."""

    def warnings(self) -> list[str]:
        """Return the warnings that it logged since the last call."""

    def tail(self) -> str:
        """Return the last lines of its log."""


class SupervisedPart:
    """Keeps one part running.

    Args:
        part: Its process, which has been started.
        start: Starts the process again, without waiting.
        say: Shows a line to the operator.
        show_tail: Show the end of the log whenever the process ended, because its warnings are not shown.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self,
        part: Part,
        start: Callable[[], object],
        say: Callable[[str], None],
        *,
        show_tail: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._part = part
        self._start = start
        self._say = say
        self._show_tail = show_tail
        self._clock = clock
        self._backoff = RestartBackoff(clock=clock)
        # Rarely: two systems whose workers have the same names would take each other's place at each start.
        self._repair_backoff = RestartBackoff(30.0, 600.0, 3_600.0, clock)
        for backoff in (self._backoff, self._repair_backoff):
            backoff.on_start()
        self._throttle = LogThrottle(_REPEAT_S, clock)
        self._start_at: float | None = None
        """While the process waits for its next start: the time of it."""

    def update(self) -> bool:
        """Show new warnings, and start the process again when its time has come. Return whether it was."""
        try:
            for line in self._part.warnings():
                self._show_warning(line)
        except Exception as exc:  # noqa: BLE001 - a fault of one part must not reach the others
            self._show_warning(f" WARNING its log cannot be read: {exc!r}")
        if self._start_at is None:
            if (status := self._part.status) is not None:
                self._on_end(status)
            return False
        return self._clock() >= self._start_at and self._start_again()

    def _on_end(self, status: int) -> None:
        unusable = status in USAGE_EXITS
        why = f"cannot run as it is (status {status})" if unusable else f"ended (status {status})"
        backoff = self._repair_backoff if status == CONFIG_EXIT else self._backoff
        shows_tail = self._show_tail or unusable
        tail = f"; the end of {self._part.log}:\n{self._part.tail()}" if shows_tail else ""
        self._wait(backoff, why, tail)

    def _start_again(self) -> bool:
        for backoff in (self._backoff, self._repair_backoff):
            backoff.on_start()
        try:
            self._start()
        except Exception as exc:  # noqa: BLE001 - as above
            self._wait(self._backoff, f"could not be started ({exc})")
            return False
        self._start_at = None
        return True

    def _wait(self, backoff: RestartBackoff, why: str, details: str = "") -> None:
        """Wait for the next start. A part that keeps ending is reported less often."""
        delay = backoff.next_delay()
        self._start_at = self._clock() + delay
        suppressed = self._throttle.admit(why) if backoff.keeps_ending else ""
        if suppressed is not None:
            self._say(f"{self._part.name} {why}; starting it again in {delay:.1f} s{suppressed}{details}")

    def _show_warning(self, line: str) -> None:
        # Without the time, which differs. A part that keeps ending logs the same lines after each start.
        text = next((line.partition(level)[2] for level in SHOWN_LEVELS if level in line), line)
        if not self._backoff.keeps_ending or self._throttle.admit(text) is not None:
            self._say(f"{self._part.name} | {line}")
