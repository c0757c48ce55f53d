"""What the stages share: the system and the rows so far."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from tests.benchmarks.client_ids import client_id
from tests.benchmarks.overload.figures import OUTCOMES, Flood
from tests.benchmarks.overload.open_loop import ATTACK_TIMEOUT_S, KEPT, MAX_SENT, Attack
from tests.benchmarks.overload.slow_gateway import slowed
from tests.benchmarks.stoplog_system import Stoplog

FLOOD_CLIENTS: Final = 10_000
DEADLINE_MS: Final = 250.0


class Row(msgspec.Struct, frozen=True):
    """One line of the table; ``met`` is ``None`` if the figure has no target."""

    stage: str
    figure: str
    measured: str
    target: str = ""
    met: bool | None = None


class Context:
    """The context of one run.

    Args:
        stoplog: The system. Its first gateway is measured.
        folder: Directory for the files of load generators.
    """

    def __init__(self, stoplog: Stoplog, folder: Path) -> None:
        self.stoplog = stoplog
        self.gateway = stoplog.system.gateways[0]
        self.folder = folder
        self.rows: list[Row] = []
        self.floods: dict[str, Flood] = {}
        self._began = time.monotonic()
        assert self.gateway.pid is not None
        self.pid: int = self.gateway.pid

    def say(self, what: str) -> None:
        """Print a line on the progress."""
        print(f"{time.monotonic() - self._began:4.0f} s {what}", file=sys.stderr, flush=True)

    @contextmanager
    def slow_gateway(self) -> Iterator[None]:
        """Limit the gateway's CPU time within ``with``."""
        with slowed(self.pid):
            yield

    def add(
        self, stage: str, figure: str, measured: str, target: str = "", *, met: bool | None = None
    ) -> None:
        """Add a row, and print it."""
        row = Row(stage, figure, measured, target, met)
        self.rows.append(row)
        self.say(f"{stage}: {figure}: {measured}" + ("" if met is None else f" ({target}: {met})"))

    def add_kinds(self, stage: str, flood: Flood) -> None:
        """Add a row for each kind of requests in *flood*."""
        self.floods[stage] = flood
        for kind, latency in flood.kinds.items():
            self.add(
                stage,
                OUTCOMES[kind],
                f"{flood.rate(kind):,.0f}/s, p50 {latency.p50_ms:,.1f} ms, p99 {latency.p99_ms:,.1f} ms, "
                f"max {latency.max_ms:,.0f} ms",
            )

    def attack(
        self,
        name: str,
        rate: float,
        seconds: float,
        *,
        path: str = "",
        in_flight: int = MAX_SENT,
        kept: int = KEPT,
        timeout_s: float = ATTACK_TIMEOUT_S,
    ) -> Attack:
        """Start an attack with checks of :data:`FLOOD_CLIENTS` clients, or with GET requests to *path*.

        Args:
            name: Names the attack and its clients.
            rate: Requests per second.
            seconds: Duration.
            path: Path of GET requests.
            in_flight, kept, timeout_s: As those of :class:`Attack`.
        """
        numbers = random.Random(name)
        bodies = [] if path else [_check(numbers) for _ in range(FLOOD_CLIENTS)]
        return Attack(
            self.gateway.url + (path or "/v1/check"),
            bodies,
            rate=rate,
            seconds=seconds,
            folder=self.folder,
            name=name,
            in_flight=in_flight,
            kept=kept,
            timeout_s=timeout_s,
            fields=[("X-Client-Id", "proxied")],
        )

    def counted(self) -> dict[str, int]:
        """Return the gateway's counters of checks: decided, degraded and uncounted."""
        metric = self.gateway.metric
        return {
            "decided": int(metric("stoplog_checks_allowed_total") + metric("stoplog_checks_rejected_total")),
            "degraded": int(metric("stoplog_checks_degraded_total")),
            "uncounted": int(metric("stoplog_checks_uncounted_total")),
        }


def _check(numbers: random.Random) -> bytes:
    return b'{"client_id":"%s"}' % client_id(numbers.randrange(FLOOD_CLIENTS)).encode()
