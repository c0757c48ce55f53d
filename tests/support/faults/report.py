"""The seconds of failing open per fault: collected by the tests, printed at the end of the run.

Correctness fails a run on any machine. Seconds are always reported. They are judged only where the control
(the scenario without a fault) shows that the machine is fast enough: see :func:`machine_is_fast`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

CONTROL: Final = "none"
"""Name of the scenario that does no harm. It runs first."""

FAST_P99_MS: Final = 120.0
"""On two quiet cores the lists of the control take 40 to 80 ms at the 99th percentile."""

FAST_PER_S: Final = 600
"""Checks per second that the control answers where nothing else uses the cores; 640 are offered."""

LEAST_PER_S: Final = 500
"""Checks per second that must be answered during a fault, of 640 offered."""


class Targets(NamedTuple):
    """Seconds that a fault may cost a partition that moves to another worker, and one that stays.

    The report prints the target beside the measurement. A run fails only well above it (:meth:`Row.check`).
    """

    moved_s: float | None = None
    kept_s: float | None = None


class Row(NamedTuple):
    """The measurements of one fault.

    Attributes:
        fault: Name, as printed.
        moved_s: Seconds of failing open of the worst partition that changed its owner; ``None`` if none did.
        kept_s: The same for the partitions that kept their owner.
        targets: The targets of the fault.
        per_s: Checks answered per second while the fault lasted.
        p99_ms: 99th percentile of the milliseconds per list of checks.
        failed_open: Checks that were answered without the store's decision.
        compared: Decisions that were compared with the log.
        leased: Answers by leases.
        hot_s: Seconds from the fault on for which hot clients of the partitions that moved, or of all if none
            did, got exact answers (the median); ``None`` if most never failed open.
    """

    fault: str
    moved_s: float | None
    kept_s: float | None
    targets: Targets
    per_s: float
    p99_ms: float
    failed_open: int
    compared: int
    leased: int
    hot_s: float | None

    def check(self, otherwise_s: float) -> None:
        """Fail if the fault cost far more than its target.

        Args:
            otherwise_s: Bound in seconds where there is no target.
        """
        for seconds, target_s in zip((self.moved_s, self.kept_s), self.targets, strict=True):
            most_s = otherwise_s if target_s is None else target_s + (5 if target_s > 1 else 2.5)
            assert (seconds or 0.0) <= most_s, f"{self}: failed open for more than {most_s:g} s"
        assert self.per_s >= LEAST_PER_S, f"{self}: the load was not answered fast enough"


ROWS: list[Row] = []

_judging = True


def report_only() -> None:
    """Judge no seconds in this run: it lasts so long that other programs may run beside it."""
    global _judging
    _judging = False


def machine_is_fast() -> bool:
    """Return whether seconds can be judged: the control of this run was fast, and none reports only."""
    if not _judging:
        return False
    controls = [row for row in ROWS if row.fault == CONTROL]
    return any(row.p99_ms <= FAST_P99_MS and row.per_s >= FAST_PER_S for row in controls)


def table() -> str:
    """Return all rows as a Markdown table, and whether the seconds were judged."""
    lines = [
        "| fault | moved partitions: s | kept: s | hot clients exact for: s | answered/s | p99: ms "
        "| failed open | compared | by leases |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        moved, kept = _beside(row.moved_s, row.targets.moved_s), _beside(row.kept_s, row.targets.kept_s)
        hot = _beside(row.hot_s, None)
        load = f"{row.per_s:.0f} | {row.p99_ms:.0f} | {row.failed_open:,} | {row.compared:,} | {row.leased:,}"
        lines.append(f"| {row.fault} | {moved} | {kept} | {hot} | {load} |")
    if not machine_is_fast():
        lines.append(
            f"The seconds above were reported and not judged: run the fault suite on a quiet machine, whose "
            f"control has a p99 of {FAST_P99_MS:g} ms and {FAST_PER_S} checks/s, to judge them."
        )
    return "\n".join(lines)


def _beside(seconds: float | None, target_s: float | None) -> str:
    """Return the measurement with its target beside it."""
    if seconds is None:
        return "-"
    if target_s is None:
        return f"{seconds:.1f}"
    return f"{seconds:.1f} (≤ {target_s:g}{'' if seconds <= target_s else ': missed'})"
