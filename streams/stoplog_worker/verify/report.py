"""``python -m streams verify``: what ``stoplog verify`` runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Final

import msgspec
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from stoplog.errors import StoplogError
from stoplog.kafka import clients as kafka
from stoplog.kafka.topic_admin import verify_topics
from stoplog.lanes import with_lanes
from stoplog.topics import load_topics
from stoplog_worker.restore.lane_bootstrap import changelogs
from stoplog_worker.settings import Settings
from stoplog_worker.verify.progress_reader import Reading
from stoplog_worker.verify.verifier import Finding, Verification

DIFFERS: Final = 1
USAGE: Final = 2
"""As of any command that cannot be read."""
UNVERIFIED: Final = 3
"""Nothing was compared: neither good news nor bad."""

_WAITING: Final = "letting the log go on"

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


def verify(
    settings: Settings, seconds: float, progress: Callable[[str, float, float], None]
) -> list[Finding]:
    """Verify the system that *settings* name.

    Args:
        settings: A worker's, of the lane that is meant.
        seconds: How long to let the log go on between the markers.
        progress: Called with what is being done, how far it is, and how far it goes.

    Raises:
        StoplogError: it could not be verified; the text says why.
    """
    specs = load_topics(settings.topics)
    verify_topics(kafka.worker_admin(settings.bootstrap), with_lanes(specs, [settings.lane]).values())
    reading = Reading(settings.bootstrap, progress)
    try:
        with TemporaryDirectory(prefix="stoplog-verify-") as folder:
            verification = Verification(reading, specs, changelogs(settings.lane), Path(folder))
            try:
                began = monotonic()
                verification.begin()
                while (passed := monotonic() - began) < seconds:
                    progress(_WAITING, passed, seconds)
                    sleep(min(0.1, seconds - passed))
                return verification.finish()
            finally:
                verification.close()
    finally:
        reading.close()


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser("stoplog verify")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args(arguments)
    try:
        settings = Settings()
        with _progress() as progress:
            findings = verify(settings, options.seconds, progress)
    except (StoplogError, ValidationError) as exc:
        _err.print(f"stoplog: {exc}", style="red", markup=False)
        return UNVERIFIED if isinstance(exc, StoplogError) else USAGE
    if options.as_json:
        sys.stdout.write(msgspec.json.encode({**_total(findings), "partitions": findings}).decode() + "\n")
    else:
        _show(findings)
    return DIFFERS if any(finding.differ for finding in findings) else 0


@contextmanager
def _progress() -> Iterator[Callable[[str, float, float], None]]:
    """A bar on a terminal, nothing elsewhere."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        console=_err,
        transient=True,
        disable=not _err.is_terminal,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: float, of: float) -> None:
            if what not in tasks:
                for other in tasks.values():
                    bars.remove_task(other)
                tasks.clear()
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=of)

        yield progress


def _total(findings: Sequence[Finding]) -> dict[str, int]:
    names = ("decisions", "replies", "states", "policies", "ahead", "differ")
    return {name: sum(getattr(finding, name) for finding in findings) for name in names}


def _show(findings: Sequence[Finding]) -> None:
    table = Table("partition", "from", "to", "decisions", "replies", "states", "policies", "ahead", "differ")
    for column in table.columns:
        column.justify = "right"
    for f in findings:
        numbers = (f.partition, f.start, f.end, f.decisions, f.replies, f.states, f.policies, f.ahead)
        table.add_row(*map(str, numbers), f"[red]{f.differ}[/]" if f.differ else "0")
    _out.print(table)
    for f in findings:
        for difference in f.differences:
            _out.print(f"partition {f.partition}: {difference}", markup=False)
    total = _total(findings)
    if all(f.start == f.end for f in findings):
        _out.print("nothing was decided meanwhile: there was nothing to compare; run it again under load")
    else:
        _out.print(
            f"{total['decisions']:,} decisions recomputed, {total['replies']:,} of them compared with "
            f"replies; {total['states']:,} states and {total['policies']:,} policies compared with the "
            f"changelogs: "
            f"{total['differ']:,} differ"
        )
