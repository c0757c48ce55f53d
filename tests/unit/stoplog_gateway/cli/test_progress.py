"""How a command shows its progress: one changing line on a terminal, seldom a plain line elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from stoplog_gateway.cli import progress
from stoplog_gateway.cli.progress import Progress

CLEARED = "\x1b[2K"
HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=80, markup=False, highlight=False), file


def test_progress_on_a_terminal_is_one_line_that_goes_away() -> None:
    screen, file = console(terminal=True)
    shown = Progress(screen)
    shown.say("starting ...")
    shown.show("3 of 4 jars", 0.75)
    assert "3 of 4 jars" in file.getvalue()
    assert file.getvalue().count("\n") == 1  # only the line that stays
    shown.show("waiting")
    shown.clear()

    text = file.getvalue()
    assert text.startswith("starting ...\n")
    assert "━" in text
    assert text.rfind(CLEARED) > text.rfind("waiting")
    assert text.rfind(SHOWN) > text.rfind(HIDDEN)


def test_progress_elsewhere_is_a_plain_line_after_a_long_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress, "monotonic", lambda: now)
    pipe, file = console(terminal=False)
    shown = Progress(pipe)
    shown.say("starting ...")
    for second in range(12):
        now = 100.0 + second
        shown.show(f"{second} of 12 jars", second / 12)
    shown.clear()
    assert file.getvalue() == "starting ...\n5 of 12 jars ...\n10 of 12 jars ...\n"


class InterruptedOnce(io.StringIO):
    """A file whose user presses Ctrl-C just after the first text was written."""

    interrupted = False

    def flush(self) -> None:
        """Raise what Ctrl-C raises, once."""
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt


def test_a_line_that_ctrl_c_interrupts_is_not_shown_again() -> None:
    file = InterruptedOnce()
    shown = Progress(Console(file=file, markup=False, highlight=False))
    with pytest.raises(KeyboardInterrupt):
        shown.say("gateway-1 | a warning")
    shown.say("stopping ...")
    assert file.getvalue() == "gateway-1 | a warning\nstopping ...\n"
