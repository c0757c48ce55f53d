"""How the owner thread waits: it does not turn and turn for a flush that may not go on."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from streams.contract.policy import parse_policy
from streams.contract.records import Check
from streams.contract.topics import partition_of
from streams.judge import fault_finder, judge
from streams.ledger import Marker
from streams.metrics import Metrics
from streams.owned import Owned
from streams.owner import Owner
from streams.settings import Settings
from tests.unit.streams.memory import Changelogs, MemoryStore

CLIENT = next(name for name in map("c-{}".format, range(99)) if partition_of(name, 4) == 0)


class Lease:
    held = True

    def holds(self) -> bool:
        return self.held


class Waits:
    """Stands for the consumer's drain: nothing ever comes, and it keeps how long that was waited for."""

    def __init__(self) -> None:
        self.given: list[float] = []

    def __call__(self, _consumer: Any, _most: int, timeout_s: float) -> list[Any]:
        self.given.append(timeout_s)
        return []


def test_it_waits_where_a_flush_may_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, lease, changelogs = Waits(), Lease(), Changelogs()
    monkeypatch.setattr("streams.owner.drain", waits)
    settings, metrics = Settings(kafka="127.0.0.1:1", home=tmp_path), Metrics()
    stopped: Any = lambda *_: None  # noqa: E731
    owner = Owner(settings, 4, {"counters": "c", "policies": "p"}, lease, metrics, stopped, stopped)  # type: ignore[arg-type]
    outbox: Any = owner._outbox
    monkeypatch.setattr(outbox, "changelog", lambda _, *rest: changelogs.send(*rest))
    marker = Marker(0, 0, -1, -1, "topic", parse_policy("100/minute"))
    owned = Owned(settings, 4, MemoryStore(0), marker, outbox, metrics)
    judge(owned.ledger, 0, owned.ledger.advance(0, 1_000), [Check(CLIENT)], fault_finder(0, 4))
    owner._running[0] = owned
    owner._lag_at = monotonic() + 1_000  # there is nobody to ask

    owner._turn()
    assert changelogs.sent, "the flush has begun"
    changelogs.arrive_all()
    owner._turn()
    assert waits.given[-1] > 0, "nothing was to be done without the acknowledgment"
    changelogs.fail()  # of the marker
    lease.held = False
    owner._turn()
    owner._turn()
    assert waits.given[-1] > 0, "the flush is to be begun again, but not now"
    lease.held = True
    owner._turn()
    assert owned.ledger.changed, "it will be written again"
    owner._consumer.close()
