"""The one table: for a terminal, and as Markdown for the README. Pure."""

from __future__ import annotations

from typing import Final

from rich.table import Table

from tests.benchmarks.samples import Result, Run, Sample
from tests.benchmarks.targets import Target, against, short, targets

_STAGES: Final = {
    "callers": "by callers",
    "hot": "one hot client",
    "clients": "by clients",
    "partitions": "by partitions",
    "workers": "by workers",
}
COLUMNS: Final = (
    "what",
    "callers",
    "checks/s",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "gateway µs",
    "worker µs",
    "broker µs",
    "together µs",
    "load µs",
    "RSS MB",
    "target: measured; in the same run",
)


def cells(run: Run, result: Result, goals: list[Target]) -> list[str]:
    """One row."""
    middle = result.median
    notes = [str(goal) for goal in goals if goal.key == result.key] + against(run, result)
    if let_through := sum(sample.let_through for sample in result.samples):
        share = 100 * let_through / sum(sample.checks for sample in result.samples)
        notes.append(f"{short(share)} % let through undecided")
    return [
        result.what,
        str(result.callers or ""),
        _shown(middle(lambda sample: sample.rate)),
        _shown(middle(lambda sample: sample.p50_ms)),
        _shown(middle(lambda sample: sample.p99_ms)),
        _shown(middle(lambda sample: sample.p999_ms)),
        *(_shown(result.cpu_us(part)) for part in ("gateway", "worker", "broker", "together")),
        _shown(middle(lambda sample: sample.load_us)),
        _memory(result.samples[-1]),
        "; ".join(notes),
    ]


def rich_table(run: Run) -> Table:
    """For a terminal."""
    table = Table(title=title(run), caption=caption(run), title_justify="left", caption_justify="left")
    for column in COLUMNS:
        left = column in (COLUMNS[0], COLUMNS[-1])
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    goals = targets(run)
    for stage, name in _STAGES.items():
        rows = [result for result in run.results if result.stage == stage]
        if rows:
            table.add_section()
            table.add_row(f"[bold]{name}")
        for result in rows:
            table.add_row(*cells(run, result, goals))
    return table


def markdown(run: Run) -> str:
    """For the README: the same rows, the facts above and what is missing below."""
    goals = targets(run)
    lines = [title(run), "", _line(COLUMNS), _line([":--", *["--:"] * (len(COLUMNS) - 2), ":--"])]
    lines += [_line(cells(run, result, goals)) for result in run.results]
    return "\n".join([*lines, "", caption(run)])


def title(run: Run) -> str:
    """What it was measured on."""
    return " · ".join(f"{name}: {value}" for name, value in run.facts.items())


def caption(run: Run) -> str:
    """How to read it, and what could not be measured."""
    said = [
        f"Medians of {run.rounds} runs of {run.seconds:g} s each, taken in turn; µs: CPU of a check. In SDK "
        "rows the gateway is the process of the callers; a peer has one figure, together. Load: the "
        "generator's own CPU.",
    ]
    said += [
        f"{int(clients):,} clients: {size:.0f} bytes each on disk."
        for clients, size in run.disk_bytes.items()
    ]
    said += [f"Not measured: {it.what}: {it.why}" for it in run.skipped]
    return "\n".join(said)


def _shown(value: float | None) -> str:
    return "" if value is None else short(value)


def _memory(sample: Sample) -> str:
    return " + ".join(f"{megabytes:.0f}" for megabytes in sample.rss_mb.values())


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"
