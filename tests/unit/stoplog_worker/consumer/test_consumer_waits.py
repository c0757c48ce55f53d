"""How the owner thread waits: it does not turn and turn for a flush that may not go on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from stoplog_worker.algorithm.fold import fault_finder, judge
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, encode_marker
from stoplog_worker.consumer.consumer_thread import ConsumerThread
from stoplog_worker.metrics import Metrics
from stoplog_worker.partition.checkpoint import CHUNK
from stoplog_worker.partition.partition import _RETRY_S, Partition
from stoplog_worker.settings import Settings
from stoplog_worker.state.store import COUNTERS, POLICIES

from stoplog.partitioning import partition_of
from stoplog.policy import parse_policy
from stoplog.wire.checks import Check
from tests.support.memory_store import Changelogs, MemoryStore

CLIENTS = [name for name in map("c-{}".format, range(20_000)) if partition_of(name, 4) == 0]


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


class Bench(NamedTuple):
    """An owner that judges one partition, and what stands around it."""

    owner: ConsumerThread
    owned: Partition
    lease: Lease
    waits: Waits
    changelogs: Changelogs

    def judge(self, clients: list[str]) -> None:
        ledger = self.owned.ledger
        offset = ledger.next_offset
        judge(ledger, offset, ledger.advance(offset, 1_000), [*map(Check, clients)], fault_finder(0, 4))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    waits, lease, changelogs = Waits(), Lease(), Changelogs()
    monkeypatch.setattr("stoplog_worker.consumer.consumer_thread.drain", waits)
    settings, metrics = Settings(kafka="127.0.0.1:1", home=tmp_path), Metrics()
    told: Any = lambda *_: None  # noqa: E731
    owner = ConsumerThread(settings, 4, {"counters": "c", "policies": "p"}, lease, metrics, told, told)  # type: ignore[arg-type]
    outbox: Any = owner._outbox
    monkeypatch.setattr(outbox, "changelog", lambda _, *rest: changelogs.send(*rest))
    marker = Marker(0, 0, -1, -1, "topic", parse_policy("100/minute"))
    store = MemoryStore(0)
    store.write(POLICIES, [(MARKER_KEY, encode_marker(marker))])
    owned = owner._running[0] = Partition(settings, 4, store, marker, outbox, metrics)
    owner._lag_at = monotonic() + 1_000  # there is nobody to ask
    yield Bench(owner, owned, lease, waits, changelogs)
    owner._consumer.close()


def test_it_waits_where_a_flush_may_not_go_on(bench: Bench) -> None:
    owner, waits, changelogs = bench.owner, bench.waits, bench.changelogs
    bench.judge(CLIENTS[:1])
    owner._turn()
    assert changelogs.sent, "the flush has begun"
    changelogs.arrive_all()
    owner._turn()
    assert waits.given[-1] > 0, "nothing was to be done without the acknowledgment"
    changelogs.fail()  # of the marker
    bench.lease.held = False
    owner._turn()
    owner._turn()
    assert waits.given[-1] > 0, "the flush is to be begun again, but not now"
    bench.lease.held = True
    owner._turn()
    assert bench.owned.ledger.changed, "it will be written again"


@pytest.mark.parametrize("crowded", [False, True])
def test_a_flush_is_done_at_once_only_where_memory_is_short(bench: Bench, crowded: bool) -> None:
    bench.judge(CLIENTS)
    if crowded:
        bench.owned.ledger.size *= 1_000
    bench.owner._turn()  # the flush begins
    bench.owner._turn()
    assert (len(bench.changelogs.sent) == len(CLIENTS)) == crowded


def test_a_flush_that_holds_up_all_checks_ends_with_the_lease(bench: Bench) -> None:
    bench.judge(CLIENTS)
    bench.owned.ledger.size *= 1_000
    holds = iter([True] * 3)
    bench.lease.holds = lambda: next(holds, False)  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stoplog_worker.consumer.consumer_thread._CROWDED_S", 0.0)
        bench.owner._turn()
    assert len(bench.changelogs.sent) == 3 * CHUNK, "a step for each time that it was seen to hold"


def test_a_flush_of_what_is_held_that_fails_is_not_begun_again_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, waits, changelogs = bench.owner, bench.waits, bench.changelogs
    now = monotonic()
    monkeypatch.setattr("stoplog_worker.partition.partition.monotonic", lambda: now)
    bench.judge(CLIENTS[:1])
    done: Future[None] = Future()
    owner._hold(60, done)
    for _ in range(3):
        owner._turn()
        assert [sent.table for sent in changelogs.sent] == [COUNTERS]
        changelogs.fail()
        waits.given.clear()
        for _ in range(10):
            owner._turn()
        assert not changelogs.sent
        assert min(waits.given[2:]) > 0, "it waits for records meanwhile"
        now += _RETRY_S
    while not done.done():
        owner._turn()
        changelogs.arrive_all()
    assert changelogs.logs[POLICIES][-1][0] == MARKER_KEY


def test_what_does_not_wait_for_its_time_is_a_share_of_what_a_worker_replays_and_keeps(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(bench.owned, "tend", lambda _now, _until, enough, many: told.append((enough, many)))
    others: Any = {
        number: SimpleNamespace(ledger=bench.owned.ledger, tend=lambda *_: None, busy=False)
        for number in (1, 2, 3)
    }
    bench.owner._tend(bench.owned, 0.0, 0.0)
    bench.owner._running.update(others)
    bench.owner._tend(bench.owned, 0.0, 0.0)
    bench.owner._running = {0: bench.owned}
    assert told == [(80_000, 150_000 // 8), (20_000, 150_000 // 4 // 8)]
