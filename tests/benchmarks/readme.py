"""``python -m tests.benchmarks.readme <run.json>``: a run's table into README.md, between its markers."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

import msgspec

from tests.benchmarks.samples import Run
from tests.benchmarks.table import markdown
from tests.broker import CHECKOUT

BEGIN: Final = "<!-- benchmark: written by `make bench-readme` -->"
END: Final = "<!-- end of benchmark -->"
_FOLDER: Final = CHECKOUT / "docs"
_PLOT: Final = "![CPU of a check and p99 by callers, and where the CPU goes](docs/benchmark.png)"


def rewritten(text: str, table: str) -> str:
    """*text* with what stands between the markers replaced by *table*.

    Raises:
        ValueError: there is not one pair of markers.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise ValueError(f"the text needs {BEGIN} and, after it, {END}, each once")
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    return f"{head}\n\n{table}\n\n{tail}"


def main(measured: Path) -> None:
    """Rewrite the README; keep figures and plot beside it."""
    run = msgspec.json.decode(measured.read_bytes(), type=Run)
    readme = CHECKOUT / "README.md"
    readme.write_text(rewritten(readme.read_text(), f"{markdown(run)}\n\n{_PLOT}"))
    for file in (measured, measured.with_suffix(".png")):
        shutil.copyfile(file, _FOLDER / f"benchmark{file.suffix}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
