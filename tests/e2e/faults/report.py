"""The measured seconds of failing open, by fault: collected by the tests, printed at the run's end."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A fault: seconds let through on the worst partition that changed its owner and that kept it."""

    fault: str
    moved_s: float | None
    kept_s: float | None
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
        moved, kept = ("-" if s is None else f"{s:.1f}" for s in (row.moved_s, row.kept_s))
        lines.append(f"| {row.fault} | {moved} | {kept} | {row.let_through:,} | {row.compared:,} |")
    return "\n".join(lines)
