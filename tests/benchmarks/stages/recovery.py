"""Rows on how fast a worker restores a changelog."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.benchmarks.context import BenchContext
from tests.benchmarks.recovery import measure
from tests.benchmarks.samples import Result, Sample

STAGE: Final = "recovery"
_CLIENTS: Final = 1_000_000


def run(bench: BenchContext) -> None:
    """Measure once how fast many clients are restored, and how fast a standby catches up with as many."""
    bench.say(f"{STAGE}: {_CLIENTS:,} clients")
    with TemporaryDirectory(prefix="stoplog-bench-") as folder:
        speeds = measure(_CLIENTS, Path(folder))
    whats = ("restored to an empty disk", "read by a standby that catches up")
    for key, what, speed in zip(("recovery", "catching-up"), whats, speeds, strict=True):
        sample = Sample(checks=speed.records, seconds=speed.seconds, cpu_s={"worker": speed.cpu_s}, rss_mb={})
        what = f"changelog records, {_CLIENTS:,} clients, {what}"
        bench.results.append(Result(key=key, stage=STAGE, what=what, callers=0, samples=[sample]))
