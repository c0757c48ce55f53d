"""A case, and how cases are measured: in rounds, one after the other, back and forth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.cpu import Meter
from tests.benchmarks.loader import LoadFailed
from tests.benchmarks.samples import Result, Sample, Skipped

Load = Callable[[Meter, int], dict[str, Any]]
"""Puts load on for one window, in which it runs the meter; told a seed; returns fields of a Sample."""


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        key: Its name among the results.
        stage: The group of rows it is shown in.
        what: For the reader.
        callers: Who ask at the same time; 0: nobody waits for an answer.
        parts: Process ids of the servers, by part.
        load: What puts load on them.
    """

    key: str
    stage: str
    what: str
    callers: int
    parts: Mapping[str, Sequence[int]]
    load: Load

    def sample(self, seed: int) -> Sample:
        """Measure it once.

        Raises:
            LoadFailed: the load could not be put on.
        """
        meter = Meter(self.parts)
        figures = self.load(meter, seed)
        return Sample(**figures, cpu_s=meter.cpu_s, rss_mb=meter.rss_mb())


def measure(
    cases: Sequence[Case], rounds: int, say: Callable[[str], None], *, warm: bool = True
) -> tuple[list[Result], list[Skipped]]:
    """Measure *cases* in *rounds* rounds, each in the opposite order of the one before.

    What changes on the machine in the course of minutes so comes to all of them alike.

    Args:
        cases: What to measure.
        rounds: How often.
        say: Told how far it is.
        warm: Whether one more round comes before them and is discarded.
    """
    samples: dict[str, list[Sample]] = {case.key: [] for case in cases}
    skipped: dict[str, Skipped] = {}
    for number in range(0 if warm else 1, rounds + 1):
        say(f"{cases[0].stage}: " + (f"round {number} of {rounds}" if number else "warming up"))
        for case in cases if number % 2 else reversed(cases):
            if case.key in skipped:
                continue
            try:
                sample = case.sample(number)
            except LoadFailed as exc:
                skipped[case.key] = Skipped(case.key, case.what, str(exc))
                continue
            if number:
                samples[case.key].append(sample)
    results = [
        Result(key=c.key, stage=c.stage, what=c.what, callers=c.callers, samples=samples[c.key])
        for c in cases
        if c.key not in skipped
    ]
    return results, list(skipped.values())
