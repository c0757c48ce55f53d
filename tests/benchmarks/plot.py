"""``plot.py <run.json> <plot.png>``: plot CPU and latency by callers. Runs in the peers' environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_CALLERS: Final = (1, 32, 128, 512)
_LINES: Final = {
    "sdk": "Stoplog, SDK",
    "http": "Stoplog, HTTP",
    "limits": "limits + FastAPI + Redis",
    "throttlecrab": "throttlecrab (in memory)",
}


def main(measured: Path, picture: Path) -> None:
    """Draw the CPU per check, the latency, and the CPU of each part, by number of callers."""
    results = {result["key"]: result for result in json.loads(measured.read_text())["results"]}
    figure, (cost, wait, parts) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    for way, name in _LINES.items():
        found = [results[f"{way}-{n}"] for n in _CALLERS if f"{way}-{n}" in results]
        callers = [result["callers"] for result in found]
        cost.plot(callers, [_middle(result, _cpu_us) for result in found], marker="o", label=name)
        wait.plot(
            callers, [_middle(result, lambda s: s["p99_ms"]) for result in found], marker="o", label=name
        )
    _label(cost, "CPU per check, all servers", "µs")
    _label(wait, "p99", "ms")
    _bars(parts, [results[f"http-{n}"] for n in _CALLERS if f"http-{n}" in results])
    figure.savefig(picture, dpi=120)


def _bars(axes: Axes, found: list[dict[str, Any]]) -> None:
    names = [str(result["callers"]) for result in found]
    below = [0.0] * len(found)
    for part in ("gateway", "worker", "broker"):
        heights = [_middle(r, lambda s, p=part: s["cpu_s"][p] / s["checks"] * 1e6) for r in found]
        axes.bar(names, heights, bottom=below, label=part)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_title("HTTP, single checks: where the CPU goes")
    axes.set_xlabel("connections")
    axes.set_ylabel("µs per check")
    axes.legend()


def _label(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title)
    axes.set_xscale("log", base=2)
    axes.set_xticks(_CALLERS, [str(callers) for callers in _CALLERS])
    axes.set_yscale("log")
    axes.set_xlabel("callers")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    axes.legend()


def _middle(result: dict[str, Any], of: Any) -> float:
    return float(median(of(sample) for sample in result["samples"]))


def _cpu_us(sample: dict[str, Any]) -> float:
    return float(sum(sample["cpu_s"].values()) / sample["checks"] * 1e6)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
