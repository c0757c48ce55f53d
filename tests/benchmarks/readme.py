"""``python -m tests.benchmarks.readme <run.json>``: write a run into README.md and docs/benchmarks.md.

The README gets the short table; docs/benchmarks.md gets all rows and the growth tables. Both files keep their
prose: only the text between a pair of markers is replaced.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from textwrap import fill
from typing import Final

import msgspec

from tests.benchmarks.growth import growth_markdown
from tests.benchmarks.samples import Run
from tests.benchmarks.table import markdown
from tests.benchmarks.targets import short
from tests.docs_lint import MAX_COLUMNS
from tests.support.broker import CHECKOUT

README: Final = CHECKOUT / "README.md"
PAGE: Final = CHECKOUT / "docs" / "benchmarks.md"

SHORT_ROWS: Final = {
    "leases-zipf-128": "**Stoplog**, HTTP, Zipf(1.0), leases on",
    "ratelimit-zipf-128": "envoyproxy/ratelimit with Redis, HTTP, Zipf(1.0)",
    "http-128": "**Stoplog**, HTTP, uniform, leases off",
    "ratelimit-128": "envoyproxy/ratelimit with Redis, HTTP",
    "throttlecrab-128": "throttlecrab (Rust, in memory, not durable), HTTP",
    "sdk-512": "**Stoplog**, Python SDK",
}
"""The README's rows in their order: key of the case, and its name for readers."""

_TERMS: Final = {
    "uniform": "*Uniform*: all clients are checked equally often.",
    "Zipf(1.0)": "*Zipf(1.0)*: 1 % of the clients get half of the checks.",
    "leases off": "*Leases off*: every check goes through the log.",
}
"""Terms in these names, and what they mean. The README explains those that its table contains."""

_COLUMNS: Final = ("limiter", "callers", "checks/s", "p50 ms", "p99 ms", "CPU µs per check")


def markers(part: str) -> tuple[str, str]:
    """Return the comments that enclose *part* in a page: ``summary``, ``rows`` or ``growth``."""
    return f"<!-- benchmark {part}: written by `make bench-readme` -->", f"<!-- end of benchmark {part} -->"


def rewritten(text: str, part: str, content: str) -> str:
    """Return *text* with everything between the markers of *part* replaced by *content*.

    Raises:
        ValueError: *text* does not have exactly one pair of these markers.
    """
    begin, end = markers(part)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ValueError(f"the text needs {begin} and, after it, {end}, each once")
    head, tail = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    return f"{head}\n\n{content}\n\n{tail}"


def short_table(run: Run) -> str:
    """Return the README's table: at most seven rows, the run they are from, and its terms."""
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for key, name in SHORT_ROWS.items():
        if (result := run.find(key)) is None:
            continue
        figures = (
            result.median(lambda sample: sample.rate),
            result.median(lambda sample: sample.p50_ms),
            result.median(lambda sample: sample.p99_ms),
            result.cpu_us(),
        )
        if result.failed_open:
            name += f" ({short(result.failed_open)} % failed open)"
        shown = ["" if figure is None else short(figure) for figure in figures]
        rows.append((name, str(result.callers), *shown))
    rule = (":--", *["--:"] * (len(_COLUMNS) - 1))
    table = "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))
    terms = [meaning for term, meaning in _TERMS.items() if term in table]
    below = " ".join([_origin(run.facts), *terms])
    return f"{table}\n\n{fill(below, MAX_COLUMNS, break_long_words=False, break_on_hyphens=False)}"


def _origin(facts: dict[str, str]) -> str:
    known = [
        f"Run of {facts.get('when', 'unknown date')}",
        f"commit {facts.get('commit', 'unknown')}",
        facts.get("cpu", "unknown CPU"),
        f"Python {facts.get('python', 'unknown')}",
        f"Kafka {facts.get('kafka', 'unknown')}.",
    ]
    return ", ".join(known)


def main(measured: Path) -> None:
    """Rewrite both pages; keep the figures and the plot beside docs/benchmarks.md."""
    run = msgspec.json.decode(measured.read_bytes(), type=Run)
    README.write_text(rewritten(README.read_text(), "summary", short_table(run)))
    page = rewritten(PAGE.read_text(), "rows", markdown(run))
    PAGE.write_text(rewritten(page, "growth", growth_markdown(run)))
    for file in (measured, measured.with_suffix(".png")):
        kept = PAGE.with_name(f"benchmark{file.suffix}")
        if file.resolve() != kept:
            shutil.copyfile(file, kept)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
