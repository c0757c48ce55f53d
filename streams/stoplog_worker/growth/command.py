"""The command ``stoplog topics grow``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from pydantic import ValidationError
from rich.console import Console

from stoplog.errors import InvalidInput, SettingsError, StoplogError
from stoplog_worker.growth.grow import Estimate, Grown, estimate, grow
from stoplog_worker.growth.step import abort
from stoplog_worker.kafka.progress_bar import progress_bar
from stoplog_worker.settings import Settings

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser("stoplog topics grow")
    parser.add_argument("number", type=int, nargs="?")
    parser.add_argument("--abort", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup does
            signal.signal(number, signal.default_int_handler)
    try:
        if options.abort:
            return _abort(Settings(), options.as_json)
        with progress_bar(_err) as on_progress:
            if options.dry_run:
                expected = estimate(Settings(), options.number, on_progress)
            else:
                grown = grow(Settings(), options.number, on_progress)
    except KeyboardInterrupt as exc:
        _print_error("interrupted", exc)
        return EXIT_INTERRUPTED
    except (StoplogError, ValidationError, OSError) as exc:
        _print_error(str(exc), exc)
        return EXIT_USAGE if isinstance(exc, InvalidInput | SettingsError | ValidationError) else EXIT_FAILED
    if options.dry_run:
        _print_estimate(expected, options.as_json)
    else:
        _print_grown(grown, options.as_json)
    return 0


def _print_error(text: str, exc: BaseException) -> None:
    """Print *text*, and the notes of *exc*: what has changed."""
    _err.print(f"stoplog: {'. '.join([text, *getattr(exc, '__notes__', ())])}", style="red", markup=False)


def _print_json(found: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")


def _abort(settings: Settings, as_json: bool) -> int:
    aborted = abort(settings.connection)
    if as_json:
        _print_json({"aborted": aborted is not None, "to": aborted.step.to if aborted is not None else None})
    elif aborted is None:
        _out.print("no attempt to grow is under way: nothing has changed")
    else:
        _out.print(
            f"aborted growing to {aborted.step.to}: gateways and workers continue with "
            f"{aborted.count.partitions} partitions. The partitions that were added stay unused"
        )
    return 0


def _print_estimate(expected: Estimate, as_json: bool) -> None:
    before, after = expected.before.partitions, expected.after.partitions
    if as_json:
        found = {
            "before": before,
            "after": after,
            "lanes": expected.lanes,
            "states": expected.states,
            "nodes": expected.nodes,
            "pause_seconds": round(expected.pause_s, 1),
        }
        _print_json(found)
    elif before == after:
        _out.print(f"clients are hashed over {after} partitions already")
    else:
        nodes = ", ".join(expected.nodes) or "no worker and no gateway"
        _out.print(
            f"clients would be hashed over {after} partitions instead of {before}. {expected.states:,} "
            f"states would be copied. Running now: {nodes}. The pause would last about "
            f"{expected.pause_s:.0f} s. Nothing has changed"
        )


def _print_grown(grown: Grown, as_json: bool) -> None:
    if as_json:
        found = {
            "before": grown.before.partitions,
            "after": grown.after.partitions,
            "lanes": grown.lanes,
            "states": grown.states,
            "limits": grown.limits,
            "seconds": round(grown.seconds, 3),
            "nodes": grown.nodes,
            "pause_seconds": round(grown.pause_s, 3) if grown.pause_s is not None else None,
            "uncounted": grown.checks,
        }
        _print_json(found)
        return
    if grown.before.partitions == grown.after.partitions:
        _out.print(f"clients are hashed over {grown.after.partitions} partitions already")
        return
    text = (
        f"clients are now hashed over {grown.after.partitions} partitions: {grown.states:,} states and "
        f"{grown.limits:,} limits were copied in {grown.seconds:.1f} s. "
    )
    if not grown.nodes:
        text += "Start the workers, then the gateways"
    elif grown.pause_s is None:
        text += (
            "The gateways and workers do not all answer yet: see `stoplog status` and their logs. Until now, "
            f"{grown.checks:,} checks, settlements, charges and refunds are not counted"
        )
    else:
        text += (
            f"The pause lasted {grown.pause_s:.1f} s: {grown.checks:,} checks, settlements, charges "
            f"and refunds are not counted"
        )
    _out.print(text)
