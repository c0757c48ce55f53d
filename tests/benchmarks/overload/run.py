"""``make bench-overload``: offer a gateway more than it can answer, and print what it does as a table.

``python -m tests.benchmarks.overload.run [STAGE ...]`` measures all stages in nine minutes, or some of them.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from tests.benchmarks.facts import machine_facts
from tests.benchmarks.load_http import wrk_missing
from tests.benchmarks.overload import fairness, floods
from tests.benchmarks.overload.context import Context, Row
from tests.benchmarks.overload.grpc_calls import grpc_calls
from tests.benchmarks.overload.open_loop import generator
from tests.benchmarks.peers.environment import PeerMissing
from tests.benchmarks.stoplog_system import running_stoplog
from tests.support.broker import CHECKOUT

_STAGES: Final[dict[str, Callable[[Context], None]]] = {
    "checks": floods.single_checks,
    "wrk": floods.thousand_connections,
    "storm": floods.storm_of_connections,
    "authorize": floods.requests_of_proxies,
    "grpc": grpc_calls,
    "idle": fairness.idle_connections,
    "long": fairness.long_list,
    "hot": fairness.hot_client,
}
_OUTPUT: Final = CHECKOUT / "build" / "bench" / "overload.json"


def main(stages: list[str]) -> None:
    """Measure *stages*; none means all.

    Raises:
        SystemExit: A program is missing, or a stage is unknown.
    """
    unknown = [stage for stage in stages if stage not in _STAGES]
    if unknown:
        raise SystemExit(f"unknown stage {unknown[0]}: use {', '.join(_STAGES)}")
    try:
        generator()
    except PeerMissing as exc:
        raise SystemExit(f"load generator: {exc}") from exc
    if missing := wrk_missing():
        raise SystemExit(missing)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that all started processes are stopped
    facts = machine_facts()
    with TemporaryDirectory(prefix="stoplog-overload-") as folder, ExitStack() as stack:
        stoplog = stack.enter_context(running_stoplog())
        context = Context(stoplog, Path(folder))
        for name in stages or _STAGES:
            _STAGES[name](context)
    print(table(context.rows))
    _OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    content = {"facts": facts, "rows": context.rows, "floods": context.floods}
    _OUTPUT.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    print(f"\nwritten: {_OUTPUT}", file=sys.stderr)


def table(rows: list[Row]) -> str:
    """Return *rows* as a table in Markdown.

    >>> print(table([Row("wrk", "memory", "1 MB", "flat", False)]))
    | stage | figure | measured | target | |
    |---|---|--:|---|---|
    | wrk | memory | 1 MB | flat | **missed** |
    """
    lines = ["| stage | figure | measured | target | |", "|---|---|--:|---|---|"]
    for row in rows:
        met = {None: "", True: "met", False: "**missed**"}[row.met]
        lines.append(f"| {row.stage} | {row.figure} | {row.measured} | {row.target} | {met} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
