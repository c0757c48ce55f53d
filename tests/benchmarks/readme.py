"""``python -m tests.benchmarks.readme <run.json>``: a run into README.md and docs/benchmarks.md.

The README has the short table, between its markers; the page has all rows, and how cost grows.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

import msgspec

from tests.benchmarks.growth import growth_markdown
from tests.benchmarks.samples import Run
from tests.benchmarks.table import markdown, summary
from tests.support.broker import CHECKOUT

BEGIN: Final = "<!-- benchmark: written by `make bench-readme` -->"
END: Final = "<!-- end of benchmark -->"
_FOLDER: Final = CHECKOUT / "docs"
_PLOT: Final = "![CPU of a check and p99 by callers, and where the CPU goes](docs/benchmark.png)"
_MORE: Final = (
    "Medians. Together: gateway, worker and broker; in SDK and echo rows the callers' process stands for the "
    "gateway; a peer's is its servers'. All rows, each part's CPU, memory and how cost grows: "
    "[docs/benchmarks.md](docs/benchmarks.md)."
)
_PAGE: Final = """\
# The benchmark

Written by `make bench-readme` from [benchmark.json](benchmark.json), which has every sample.

![CPU of a check and p99 by callers, and where the CPU goes](benchmark.png)

## All rows

{rows}

How targets are read:

- "x Redis script pipelined": a worker is to cost a third of the script, each without its callers.
- "% of the denials by the worker": what a limit allows must be counted, and only a worker can. So of a client
  at ten times its limit the worker judges a tenth, and of the nine that are denied at most one in a hundred.
- "x 1 worker's CPU, less following": in each round two workers' CPU a check, less what following the other's
  changelog takes a standby beyond what it takes when idle, over one worker's.
- Rows by clients have a limit of an hour, so that nobody leaves the disk while the tables are filled; all
  others one of a minute. Each number of clients has a system of its own.

## How cost grows

{growth}

## How to repeat it

`make bench-full` (half an hour; nothing else should run), then `make bench-readme`. `make bench` measures a
part of it in three minutes; `make bench-readme RUN=build/bench/quick.json` shows that. It needs wrk, and for
the peers redis-server, cargo and protoc. What compares between machines is the ratios.
"""


def rewritten(text: str, table: str) -> str:
    """*text* with what stands between the markers replaced by *table*.

    Raises:
        ValueError: there is not one pair of markers.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise ValueError(f"the text needs {BEGIN} and, after it, {END}, each once")
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    return f"{head}\n\n{table}\n\n{tail}"


def page(run: Run) -> str:
    """The page of all figures."""
    return _PAGE.format(rows=markdown(run), growth=growth_markdown(run))


def main(measured: Path) -> None:
    """Rewrite README and page; keep figures and plot beside it."""
    run = msgspec.json.decode(measured.read_bytes(), type=Run)
    readme = CHECKOUT / "README.md"
    readme.write_text(rewritten(readme.read_text(), f"{summary(run)}\n\n{_MORE}\n\n{_PLOT}"))
    (_FOLDER / "benchmarks.md").write_text(page(run))
    for file in (measured, measured.with_suffix(".png")):
        shutil.copyfile(file, _FOLDER / f"benchmark{file.suffix}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
