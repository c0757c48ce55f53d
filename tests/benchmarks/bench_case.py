"""A case, and how cases are measured: in rounds, each in the opposite order of the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.cpu import Meter
from tests.benchmarks.loader import LoadGeneratorFailed
from tests.benchmarks.samples import Result, Sample, Skipped

Load = Callable[[Meter, int], dict[str, Any]]
"""Creates load for one window and runs the meter meanwhile. Takes a seed; returns fields of a Sample."""


@dataclass(frozen=True)
class BenchCase:
    """One thing to measure.

    Attributes:
        key: Name among the results.
        stage: Group of rows in the table.
        what: Label of its row.
        callers: Number of callers that wait for answers at the same time; 0 if none waits.
        parts: Process ids of the servers, by part.
        load: Creates the load.
    """

    key: str
    stage: str
    what: str
    callers: int
    parts: Mapping[str, Sequence[int]]
    load: Load

    def sample(self, seed: int) -> Sample:
        """Measure the case once.

        Raises:
            LoadGeneratorFailed: The load could not be created.
        """
        meter = Meter(self.parts)
        figures = self.load(meter, seed)
        return Sample(**figures, cpu_s=meter.cpu_s, rss_mb=meter.rss_mb())


def measure(
    cases: Sequence[BenchCase], rounds: int, say: Callable[[str], None]
) -> tuple[list[Result], list[Skipped]]:
    """Measure *cases* in *rounds* rounds, each in the opposite order of the one before.

    Changes of the machine over minutes thus affect all cases alike.

    Args:
        cases: The cases.
        rounds: Number of rounds.
        say: Receives a line on the progress.
    """
    samples: dict[str, list[Sample]] = {case.key: [] for case in cases}
    skipped: dict[str, Skipped] = {}
    for number in range(1, rounds + 1):
        say(f"{cases[0].stage}: round {number} of {rounds}")
        for case in cases if number % 2 else reversed(cases):
            if case.key in skipped:
                continue
            try:
                sample = case.sample(number)
            except LoadGeneratorFailed as exc:
                skipped[case.key] = Skipped(case.key, case.what, str(exc))
                continue
            samples[case.key].append(sample)
    results = [
        Result(key=c.key, stage=c.stage, what=c.what, callers=c.callers, samples=samples[c.key])
        for c in cases
        if c.key not in skipped
    ]
    return results, list(skipped.values())
