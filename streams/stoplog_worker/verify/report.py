"""The command ``stoplog verify``: run the verification, and print its findings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Final

import msgspec
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from stoplog.errors import InvalidInput, SettingsError, StoplogError
from stoplog.kafka import clients as kafka
from stoplog_worker.kafka.progress_bar import progress_bar
from stoplog_worker.kafka.progress_reader import OnProgress, ProgressReader
from stoplog_worker.partition_count import verified_specs
from stoplog_worker.restore.lane_bootstrap import changelogs
from stoplog_worker.settings import Settings
from stoplog_worker.verify.compare import Finding
from stoplog_worker.verify.verifier import Verifier

EXIT_DIFFERENT: Final = 1
"""Something that was stored or answered differs from what was recomputed."""
EXIT_USAGE: Final = 2
"""The arguments or the settings are invalid."""
EXIT_UNVERIFIED: Final = 3
"""Nothing was verified, so nothing is known about the system."""

_COMPARED: Final = ("decisions", "replies", "states", "policies", "differ")
"""Counts of a finding. If all of them are 0, nothing was compared."""

_NOTHING: Final = (
    "nothing was verified, because the workers decided no check in this time: run it again while checks "
    "arrive, or follow the log for longer (--seconds)"
)

_WAITING: Final = "waiting for new checks"

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


def verify(settings: Settings, seconds: float, on_progress: OnProgress) -> list[Finding]:
    """Verify the system to which *settings* connect.

    Args:
        settings: The settings of a worker of the lane to be verified.
        seconds: How long to wait for new checks after the first markers.
        on_progress: Called with the current step.

    Returns:
        A finding for each partition.

    Raises:
        StoplogError: the system could not be verified. The text states the cause.
    """
    specs, _ = verified_specs(settings, kafka.silent_admin(settings.connection), starting=False)
    reader = ProgressReader(settings.connection, on_progress)
    try:
        with TemporaryDirectory(prefix="stoplog-verify-") as folder:
            verifier = Verifier(reader, specs, changelogs(settings.lane), Path(folder), settings.keys)
            try:
                began = monotonic()
                verifier.begin()
                while (passed := monotonic() - began) < seconds:
                    on_progress(_WAITING, passed, seconds)
                    sleep(min(0.1, seconds - passed))
                return verifier.finish()
            finally:
                verifier.close()
    finally:
        reader.close()


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser("stoplog verify")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args(arguments)
    try:
        settings = Settings()
        with progress_bar(_err) as on_progress:
            findings = verify(settings, options.seconds, on_progress)
    except (StoplogError, ValidationError) as exc:
        _err.print(f"stoplog: {exc}", style="red", markup=False)
        return (
            EXIT_USAGE if isinstance(exc, InvalidInput | SettingsError | ValidationError) else EXIT_UNVERIFIED
        )
    total = _total(findings)
    if not options.as_json:
        _show(findings, total)
    status = _status(findings, total)
    if options.as_json:
        found = {"verified": status != EXIT_UNVERIFIED, **total, "partitions": findings}
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    return status


def _status(findings: Sequence[Finding], total: dict[str, int]) -> int:
    """Return the exit status, and print why nothing was verified, or why differences prove nothing.

    Workers that lack the key as well have refused these updates, and then nothing differs.
    """
    if not any(total[name] for name in _COMPARED):
        _err.print(f"stoplog: {_NOTHING}", style="red", markup=False)
        return EXIT_UNVERIFIED
    different = [finding for finding in findings if finding.differ]
    unverified = [(finding.partition, why) for finding in different for why in finding.unverified[:1]]
    for partition, why in unverified:
        text = (
            f"stoplog: partition {partition} cannot be verified: {why}. Set the workers' STOPLOG_RELAY_KEYS"
        )
        _err.print(text, style="red", markup=False)
    if len(unverified) < len(different):
        return EXIT_DIFFERENT
    return EXIT_UNVERIFIED if unverified else 0


def _total(findings: Sequence[Finding]) -> dict[str, int]:
    names = ("decisions", "replies", "states", "policies", "ahead", "differ")
    return {name: sum(getattr(finding, name) for finding in findings) for name in names}


def _show(findings: Sequence[Finding], total: dict[str, int]) -> None:
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
    _out.print(
        f"{total['decisions']:,} decisions recomputed, {total['replies']:,} of them compared with "
        f"replies; {total['states']:,} states and {total['policies']:,} policies compared with the "
        f"changelogs: {total['differ']:,} differ"
    )
