from __future__ import annotations

from typing import Any

import pytest

from tests.benchmarks.samples import Result, Run, Sample
from tests.benchmarks.targets import Target, against, targets


def result(key: str, *cpu_s: dict[str, float], **fields: Any) -> Result:
    given = {"checks": 1_000, "seconds": 1.0, "rss_mb": {}, **fields}
    return Result(
        key=key, stage="callers", what=key, callers=1, samples=[Sample(cpu_s=it, **given) for it in cpu_s]
    )


def found(*results: Result, **disk_bytes: float) -> dict[tuple[str, str], Target]:
    run = Run(facts={}, rounds=1, seconds=1, results=list(results), skipped=[], disk_bytes=disk_bytes)
    return {(target.key, target.what): target for target in targets(run)}


def test_targets_are_lower_or_upper_bounds() -> None:
    least = Target(key="sdk-512", what="checks/s", bound=100_000, at_least=True)
    assert least.met is None
    assert "not measured" in str(least)
    goals = found(result("sdk-512", {"gateway": 0.1}, p99_ms=12.5))
    assert goals["sdk-512", "checks/s"].met is False
    assert goals["sdk-512", "p99 ms"].met is False
    assert goals["http-32", "µs total"].met is None


@pytest.mark.parametrize(
    ("cpu_s", "text"),
    [
        (0.060, "60, met (stretch 75: met)"),
        (0.080, "80, met (stretch 75: MISSED)"),
        (0.090, "90, MISSED (stretch 75: MISSED)"),
    ],
)
def test_stretch_target_is_judged_by_itself(cpu_s: float, text: str) -> None:
    target = found(result("http-128", {"gateway": cpu_s}))["http-128", "µs total"]
    assert str(target) == f"µs total ≤ 85: {text}"


def test_list_target_applies_to_16_connections_only() -> None:
    goals = found(result("http-list-128", {"gateway": 0.1}), result("http-list", {"gateway": 0.01}))
    assert [key for key, _ in goals if key.startswith("http-list")] == ["http-list"]


@pytest.mark.parametrize(("worker_s", "met"), [(0.0029, True), (0.006, False)])
def test_worker_target_is_a_third_of_the_redis_script(worker_s: float, met: bool) -> None:
    goals = found(
        result("published", {"gateway": 0.1, "worker": worker_s}), result("redis-50", {"server": 0.009})
    )
    assert goals["published", "x Redis script pipelined"].met is met


def test_disk_target_applies_to_many_clients() -> None:
    goals = found(**{"1000": 900.0, "1000000": 41.0})
    sizes = {key: (goal.measured, goal.met) for (key, what), goal in goals.items() if "disk" in what}
    assert sizes == {
        "clients-1000000-uniform": (41.0, False),
        "clients-10000000-uniform": (None, None),
    }


def test_two_worker_target_subtracts_following_per_round() -> None:
    def workers(key: str, *seconds: float, **fields: Any) -> Result:
        return result(key, *({"worker": it} for it in seconds), **fields)

    def flat(*results: Result) -> float | None:
        return found(*results)["workers-2", "x 1 worker's CPU, less following"].measured

    # The machine is ten times slower in the second round. The standby takes 3 µs a check more than when idle:
    # 10 + 1 of its own + 3 for following, over 10.
    one, two = workers("workers-1", 0.010, 0.100, 0.010), workers("workers-2", 0.014, 0.113, 0.014)
    standby = workers("standby", 0.005, 0.005, 0.005, idle_cpu_s=0.002)
    assert flat(one, two, standby) == pytest.approx(1.1)
    assert flat(one, two) is None
    assert flat(one, two, workers("standby", 0.005, 0.005, 0.005)) is None


@pytest.mark.parametrize(
    ("key", "ours_s", "peer", "bound", "met"),
    [
        ("leases-zipf-32", 0.049, "ratelimit-zipf-32", 0.5, True),
        ("leases-zipf-128", 0.051, "ratelimit-zipf-128", 0.5, False),
        ("leases-uniform-32", 0.149, "ratelimit-uniform-32", 1.5, True),
    ],
)
def test_lease_target_is_a_part_of_what_the_peer_takes(
    key: str, ours_s: float, peer: str, bound: float, met: bool
) -> None:
    goal = found(result(key, {"gateway": ours_s}), result(peer, {"server": 0.1}))[
        key, "x envoyproxy/ratelimit + Redis, µs total"
    ]
    assert (goal.bound, goal.met) == (bound, met)


@pytest.mark.parametrize(("checks", "met"), [(3_000, True), (2_900, False)])
def test_leases_must_multiply_the_throughput_of_the_sdk(checks: int, met: bool) -> None:
    on, off = (
        result("leases-sdk-on", {"gateway": 0.1}, checks=checks),
        result("leases-sdk-off", {"gateway": 0.1}),
    )
    goal = found(on, off)["leases-sdk-on", "x checks/s with leases off"]
    assert (goal.at_least, goal.met) == (True, met)


def test_client_above_its_limit_has_three_targets() -> None:
    fields = {"allowed": 655, "times_limit": 1.5, "busiest_window": 501, "limit": 500, "records": 601}
    goals = found(result("leases-above", {"gateway": 0.1}, **fields))
    measured = {
        what: (round(goal.measured or 0, 4), goal.met)
        for (key, what), goal in goals.items()
        if key == "leases-above"
    }
    assert measured == {
        "most admitted in a window, x limit": (1.002, False),
        "records per check": (0.601, False),
        "admitted, x limit": (0.9825, False),
    }


def test_steady_pace_is_compared_with_the_echo() -> None:
    goals = found(
        result("pace-log", {"gateway": 0.1}, p50_ms=1.3, p999_ms=20.1),
        result("pace-echo", {"gateway": 0.1}, p50_ms=1.0),
    )
    assert goals["pace-log", "x echo's p50"].met is True
    assert goals["pace-log", "p99.9 ms"].met is False


@pytest.mark.parametrize(("leases", "measured"), [(50_000, 60.0), (100_000, 30.0), (0, None)])
def test_memory_of_leases_is_scaled_to_100_000(leases: int, measured: float | None) -> None:
    on = result("leases-memory-on", {"gateway": 0.1}, rss_mb={"gateway": 120.0}, leases=leases)
    off = result("leases-memory-off", {"gateway": 0.1}, rss_mb={"gateway": 90.0}, leases=0)
    goals = found(on, off)
    value = goals["leases-memory-on", "MB gateway of 100,000 leases"].measured
    assert value == (measured and pytest.approx(measured))


def test_application_is_shown_beside_its_peers() -> None:
    ours, theirs = result("app-zipf", {"gateway": 0.1}), result("app-slowapi", {"server": 0.4})
    run = Run(facts={}, rounds=1, seconds=1, results=[ours, theirs], skipped=[], disk_bytes={})
    assert against(run, ours) == ["CPU 0.25 x slowapi + Redis"]
    assert against(run, theirs) == []


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("release-present", "release-0.2.0"),
        ("clients-1000000-uniform", "clients-1000000-uniform-0.2.0"),
    ],
)
@pytest.mark.parametrize(("worker_s", "met"), [(0.103, True), (0.104, False)])
def test_worker_may_cost_3_percent_more_than_that_of_the_last_release(
    key: str, other: str, worker_s: float, met: bool
) -> None:
    memory = {"rss_mb": {"worker": 1.0}}
    ours = result(key, {"worker": worker_s}, **memory)
    goals = found(ours, result(other, {"worker": 0.1, "gateway": 1.0}, **memory))
    assert goals[key, "x release 0.2.0, µs worker"].met is met
