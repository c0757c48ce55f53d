"""Show on a terminal how much of a step is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from stoplog_worker.kafka.progress_reader import OnProgress


@contextmanager
def progress_bar(console: Console) -> Iterator[OnProgress]:
    """Show a progress bar on a terminal, and nothing elsewhere."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def on_progress(step: str, done: float, total: float) -> None:
            if step not in tasks:
                for other in tasks.values():
                    bars.remove_task(other)
                tasks.clear()
                tasks[step] = bars.add_task(step)
            bars.update(tasks[step], completed=done, total=total)

        yield on_progress
