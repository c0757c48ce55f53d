"""The measured seconds of failing open, by fault: collected by the tests, printed at the run's end."""

from __future__ import annotations

from typing import NamedTuple


class Targets(NamedTuple):
    """Seconds that a fault is to cost a partition that changes its owner, and one that keeps it, at most.

    A busy machine may miss them, so they are printed beside what was measured; asserted is what is worse than
    any of its moods: three times as long and five seconds more.
    """

    moved_s: float | None = None
    kept_s: float | None = None


class Row(NamedTuple):
    """A fault: seconds let through on the worst partition that changed its owner and that kept it.

    ``per_s``: checks asked in a second while it lasted. ``p99_ms``: what lists took that were asked then.
    """

    fault: str
    moved_s: float | None
    kept_s: float | None
    targets: Targets
    per_s: float
    p99_ms: float
    let_through: int
    compared: int

    def check(self, otherwise_s: float) -> None:
        """Not far from the targets; where there is none, for at most *otherwise_s*."""
        for seconds, target_s in zip((self.moved_s, self.kept_s), self.targets, strict=True):
            most_s = otherwise_s if target_s is None else target_s + (5 if target_s > 1 else 2.5)
            assert (seconds or 0.0) <= most_s, f"{self}: let through for more than {most_s:g} s"


ROWS: list[Row] = []


def table() -> str:
    """All rows, as DESIGN.md has them."""
    lines = [
        "| fault | moved partitions: s let through | kept: s | asked/s | p99: ms | let through | compared |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        moved, kept = _beside(row.moved_s, row.targets.moved_s), _beside(row.kept_s, row.targets.kept_s)
        load = f"{row.per_s:.0f} | {row.p99_ms:.0f} | {row.let_through:,} | {row.compared:,}"
        lines.append(f"| {row.fault} | {moved} | {kept} | {load} |")
    return "\n".join(lines)


def _beside(seconds: float | None, target_s: float | None) -> str:
    """What was measured, and beside it the target."""
    if seconds is None:
        return "-"
    if target_s is None:
        return f"{seconds:.1f}"
    return f"{seconds:.1f} (≤ {target_s:g}{'' if seconds <= target_s else ': missed'})"
