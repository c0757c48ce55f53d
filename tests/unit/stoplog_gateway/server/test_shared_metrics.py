"""Merge the metrics of several processes into one page. Here, each process is an object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from stoplog_gateway.server.shared_metrics import SharedMetrics, remove_gauges

from stoplog.client.metrics import GAUGES, Metrics

Member = Callable[[int], tuple[Metrics, SharedMetrics]]


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Member]:
    """Return a function that creates the process of a slot."""
    with ExitStack() as stack:

        def make(slot: int) -> tuple[Metrics, SharedMetrics]:
            metrics = Metrics()
            metrics.nodes = lambda: {"worker": slot}
            metrics.store = lambda: {"ok": slot == 1, "recovering": slot != 1}
            shared = SharedMetrics(metrics.registry, tmp_path, slot)
            metrics.shown = shared.registry
            stack.callback(shared.close)
            return metrics, shared

        yield make


def samples(metrics: Metrics) -> dict[str, float]:
    """Return the samples of the page, without ``process_*``, which differ from scrape to scrape."""
    lines = metrics.render().decode().splitlines()
    parts = [line.rsplit(" ", 1) for line in lines if not line.startswith(("#", "process_"))]
    return {name: float(value) for name, value in parts}


def busy(metrics: Metrics) -> None:
    metrics.received += 5
    metrics.degraded["deadline"] += 2
    metrics.in_flight = 3
    metrics.latency.observe(0.0002, 2)
    metrics.latency.observe(0.4)
    metrics.latency.observe(60.0)
    metrics.batches.observe(7)


def test_one_process_shows_the_page_of_a_single_process(member: Member) -> None:
    alone, (shared, _) = Metrics(), member(1)
    alone.nodes, alone.store = shared.nodes, shared.store
    for metrics in (alone, shared):
        busy(metrics)
    assert samples(shared) == samples(alone)
    help_and_type = [
        {line for line in m.render().decode().splitlines() if line.startswith("#")} for m in (alone, shared)
    ]
    assert help_and_type[0] == help_and_type[1]


def test_counts_and_buckets_of_all_processes_are_added_up(member: Member) -> None:
    (one, _), (two, writer) = member(1), member(2)
    busy(one)
    busy(two)
    busy(two)
    writer.write()
    found = samples(one)
    assert found["stoplog_checks_received_total"] == 15
    assert found['stoplog_checks_degraded_total{reason="deadline"}'] == 6
    name = "stoplog_check_duration_seconds"
    assert found[f'{name}_bucket{{le="0.0002"}}'] == 6
    assert found[f'{name}_bucket{{le="0.5"}}'] == 9
    assert found[f'{name}_bucket{{le="+Inf"}}'] == found[f"{name}_count"] == 12
    assert found[f"{name}_sum"] == pytest.approx(3 * (0.0004 + 0.4 + 60))
    assert found == samples(two)


def test_gauges_are_merged_by_their_mode(member: Member) -> None:
    (one, _), (two, writer) = member(1), member(2)
    one.in_flight, two.in_flight = 3, 4
    one.degraded_partitions, two.degraded_partitions = 1, 0
    writer.write()
    found = samples(one)
    assert found["stoplog_checks_in_flight"] == 7
    assert found["stoplog_degraded_partitions"] == 1
    assert found['stoplog_nodes{role="worker"}'] == 2
    assert found['stoplog_store_state{state="ok"}'] == found['stoplog_store_state{state="recovering"}'] == 1


def test_gauges_and_modes_match_one_to_one() -> None:
    metrics = Metrics()
    gauges = {family.name for family in metrics.registry.collect() if family.type == "gauge"}
    gauges |= {"stoplog_http_connections", "stoplog_files_stale"}  # the HTTP server registers these
    assert gauges == GAUGES.keys()


def test_counts_of_an_ended_process_stay_and_its_gauges_are_removed(member: Member, tmp_path: Path) -> None:
    (one, _), (two, writer) = member(1), member(2)
    busy(one)
    busy(two)
    writer.write()
    remove_gauges(tmp_path, 2)
    found = samples(one)
    assert found["stoplog_checks_received_total"] == 10
    assert found["stoplog_check_duration_seconds_count"] == 8
    assert found["stoplog_checks_in_flight"] == 3
    assert found['stoplog_nodes{role="worker"}'] == 1


def test_restarted_process_continues_the_counts_of_its_slot(member: Member, tmp_path: Path) -> None:
    (one, _), (two, writer) = member(1), member(2)
    busy(one)
    busy(two)
    writer.write()
    before = samples(one)
    for _ in range(3):
        remove_gauges(tmp_path, 2)
        files = len(list(tmp_path.iterdir()))
        three, writer = member(2)
        writer.write()
        counted = {n: v for n, v in samples(one).items() if "nodes" not in n and "state" not in n}
        assert counted == {n: before[n] for n in counted} | {"stoplog_checks_in_flight": 3}
        busy(three)
        writer.write()
        assert samples(one)["stoplog_checks_received_total"] == before["stoplog_checks_received_total"] + 5
        assert samples(one)["stoplog_checks_in_flight"] == 6
        before = samples(one)
    remove_gauges(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == files


def test_scrape_never_reads_a_half_written_file(member: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    (one, _), (_, new) = member(1), member(2)
    seen: list[dict[str, float]] = []
    rename = Path.rename

    def scrape_and_rename(path: Path, target: Path) -> Path:
        seen.append(samples(one))
        return rename(path, target)

    one.render()
    monkeypatch.setattr(Path, "rename", scrape_and_rename)
    new.write()
    assert len(seen) == 5


@pytest.mark.parametrize("folder_too", [False, True])
def test_removed_files_are_written_again_with_all_counts(
    member: Member, tmp_path: Path, folder_too: bool
) -> None:
    (one, first), (two, second) = member(1), member(2)
    for metrics, shared in ((one, first), (two, second)):
        busy(metrics)
        shared.write()
    expected = samples(one)
    for path in tmp_path.iterdir():
        path.unlink()
    if folder_too:
        tmp_path.rmdir()
    second.write()
    assert samples(one) == expected
    assert samples(two) == expected
