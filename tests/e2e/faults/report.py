"""The measured seconds of failing open, by fault: collected by the tests, printed at the run's end."""

from __future__ import annotations

from typing import NamedTuple


class Targets(NamedTuple):
    """Seconds that a fault may cost a partition that changes its owner, and one that keeps it."""

    moved_s: float | None = None
    kept_s: float | None = None


class Row(NamedTuple):
    """A fault: seconds let through on the worst partition that changed its owner and that kept it."""

    fault: str
    moved_s: float | None
    kept_s: float | None
    targets: Targets
    let_through: int
    compared: int


ROWS: list[Row] = []


def table() -> str:
    """All rows, as DESIGN.md has them."""
    lines = [
        "| fault | moved partitions: s let through | kept: s | checks let through | decisions compared |",
        "|---|---|---|---|---|",
    ]
    for row in ROWS:
        moved, kept = _beside(row.moved_s, row.targets.moved_s), _beside(row.kept_s, row.targets.kept_s)
        lines.append(f"| {row.fault} | {moved} | {kept} | {row.let_through:,} | {row.compared:,} |")
    return "\n".join(lines)


def _beside(seconds: float | None, target_s: float | None) -> str:
    """What was measured, and beside it the target."""
    if seconds is None:
        return "-"
    if target_s is None:
        return f"{seconds:.1f}"
    return f"{seconds:.1f} (≤ {target_s:g}{'' if seconds <= target_s else ': missed'})"
