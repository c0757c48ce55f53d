"""Show how far a command is: a line that changes on a terminal, and occasional plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

from stoplog_gateway.cli.output import err

_PLAIN_S: Final = 5.0
"""Seconds without any line after which a plain one shows that the command is still working."""


class Progress:
    """Shows lines that stay, and below them the step that a command is waiting for.

    Args:
        console: Console that shows them.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: rich.progress.Progress | None = None
        self._last = monotonic()

    def say(self, line: str) -> None:
        """Show *line*, which stays, and end the step that was shown before."""
        self.clear()
        try:
            self._console.print(line)
        except BaseException:
            # Ctrl-C may come after the line was written and before Rich has forgotten it. Rich would then
            # print it again, before the next line.
            self._console.begin_capture()
            self._console.end_capture()
            raise
        self._last = monotonic()

    def show(self, step: str, share: float | None = None) -> None:
        """Show the step that the command is waiting for.

        Args:
            step: The current step and its progress.
            share: The part of the step that is done, from 0 to 1; ``None`` if that is not known.
        """
        if not self._console.is_terminal:
            if monotonic() - self._last >= _PLAIN_S:
                self.say(f"{step} ...")
            return
        if self._live is None:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn())
            # Nothing is redirected: the command prints its results to standard output itself.
            self._live = rich.progress.Progress(
                *columns,
                console=self._console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.add_task(step, total=None)
            self._live.start()
        (task,) = self._live.task_ids
        total, completed = (None, 0.0) if share is None else (1.0, share)
        self._live.update(task, description=step, total=total, completed=completed)

    def clear(self) -> None:
        """Remove the step from the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None


@contextmanager
def showing_progress() -> Iterator[Progress]:
    """Return a :class:`Progress` on standard error, and leave the terminal as it was."""
    progress = Progress(err)
    try:
        yield progress
    finally:
        progress.clear()
