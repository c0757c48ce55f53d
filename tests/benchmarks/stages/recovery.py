"""How fast a changelog becomes state, as rows beside the others."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.benchmarks.bench import Bench
from tests.benchmarks.recovery import measure
from tests.benchmarks.samples import Result, Sample

STAGE: Final = "recovery"
_CLIENTS: Final = 1_000_000


def run(bench: Bench) -> None:
    """Restore the states of many clients, then have a standby catch up with as many; once."""
    bench.say(f"{STAGE}: {_CLIENTS:,} clients")
    with TemporaryDirectory(prefix="stoplog-bench-") as folder:
        speeds = measure(_CLIENTS, Path(folder))
    whats = ("restored to an empty disk", "caught up with by a standby")
    for key, what, speed in zip(("recovery", "catching-up"), whats, speeds, strict=True):
        sample = Sample(checks=speed.records, seconds=speed.seconds, cpu_s={"worker": speed.cpu_s}, rss_mb={})
        what = f"records of a changelog, {_CLIENTS:,} clients, {what}"
        bench.results.append(Result(key=key, stage=STAGE, what=what, callers=0, samples=[sample]))
