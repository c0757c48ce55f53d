"""The algorithm compared with an exact sliding log: a list of the admitted requests and their times."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stoplog_worker.algorithm.sliding_window import TICKS, Window, Windows, decide, reshape, tick_of

from stoplog.policy import MAX_COST, MAX_LIMIT, MAX_WINDOW_MS, Limit
from stoplog.wire.replies import Decision

START = 1_764_000_000_123
VERSION = 7
LENGTHS = (1_000, 1_001, 7_777, 60_000, 3_600_000)
Limits = tuple[Limit, ...]
Log = list[tuple[int, int]]


def spent(log: Log, first_ms: int, last_ms: int) -> int:
    """Return the requests admitted from *first_ms* to *last_ms*, both included."""
    return sum(cost for at, cost in log if first_ms <= at <= last_ms)


def ask(windows: Windows, limits: Limits, now_ms: int, cost: int, newest_ms: int = 0) -> Decision:
    reshape(windows, limits, now_ms, newest_ms)
    return decide(windows, limits, now_ms, cost, VERSION)


def charges(windows: Windows) -> dict[int, list[tuple[int, int]]]:
    return {length: list(zip(w.leave_ms, w.counts, strict=True)) for length, w in windows.items()}


def policies(lengths: Sequence[int] = LENGTHS, highest: int = 12) -> st.SearchStrategy[Limits]:
    limits = st.builds(Limit, st.integers(0, highest), st.sampled_from(lengths))
    return st.lists(limits, min_size=1, max_size=3, unique_by=lambda limit: limit.window_ms).map(
        lambda found: tuple(sorted(found, key=lambda limit: -limit.window_ms))
    )


def steps(lengths: Sequence[int] = LENGTHS) -> st.SearchStrategy[int]:
    """Draw milliseconds from one check to the next, mostly near the edges of ticks and windows."""
    edges = {0, 1}
    for length in lengths:
        tick = tick_of(length)
        edges |= {base + by for base in (tick, length // 3, length, length + tick) for by in (-1, 0, 1)}
    return st.sampled_from(sorted(edges)) | st.integers(0, 2 * max(lengths))


asked = st.lists(st.tuples(steps(), st.integers(0, 6)), max_size=40)


@given(policies(), asked)
def test_decide_never_exceeds_limit_in_any_interval_of_window_length(
    limits: Limits, checks: list[tuple[int, int]]
) -> None:
    windows: Windows = {}
    log: Log = []
    now = START
    for step, cost in checks:
        now += step
        if ask(windows, limits, now, cost).allowed:
            log.append((now, cost))
    for limit in limits:
        for began, _ in log:
            assert spent(log, began, began + limit.window_ms) <= limit.max


@given(policies(), asked)
def test_decide_never_denies_check_that_exact_log_plus_one_tick_allows(
    limits: Limits, checks: list[tuple[int, int]]
) -> None:
    windows: Windows = {}
    log: Log = []
    now = START
    for step, cost in checks:
        now += step
        verdict = ask(windows, limits, now, cost)
        exact = all(
            spent(log, now - limit.window_ms - tick_of(limit.window_ms) + 1, now) + cost <= limit.max
            for limit in limits
        )
        assert verdict.allowed or not exact
        if verdict.allowed:
            log.append((now, cost))


@given(policies(), asked)
def test_decide_retry_after_is_exact(limits: Limits, checks: list[tuple[int, int]]) -> None:
    windows: Windows = {}
    now = START
    for step, cost in checks:
        now += step
        verdict = ask(windows, limits, now, cost)
        if verdict.allowed:
            assert verdict.retry_after_ms == 0
        elif verdict.retry_after_ms is None:
            assert any(cost > limit.max for limit in limits)
        else:
            assert all(cost <= limit.max for limit in limits)
            early, due = deepcopy(windows), deepcopy(windows)
            assert not ask(early, limits, now + verdict.retry_after_ms - 1, cost).allowed
            assert ask(due, limits, now + verdict.retry_after_ms, cost).allowed


@given(policies(), asked)
def test_decide_denial_or_cost_0_leaves_charges_unchanged(
    limits: Limits, checks: list[tuple[int, int]]
) -> None:
    windows: Windows = {}
    reshape(windows, limits, START)
    now = START
    for step, cost in checks:
        now += step
        before = charges(windows)
        verdict = ask(windows, limits, now, cost)
        if not verdict.allowed or not cost:
            assert charges(windows) == before
        else:
            assert charges(windows) != before


@given(policies(), asked)
def test_decide_replayed_after_later_denials_is_equal(limits: Limits, checks: list[tuple[int, int]]) -> None:
    """A replay finds states that have seen later checks. Those that charged nothing must leave no trace."""
    windows: Windows = {}
    now = START
    denied: list[tuple[int, int, Decision]] = []
    for step, cost in checks:
        now += step
        verdict = ask(windows, limits, now, cost)
        if verdict.allowed and cost:
            denied.clear()
        else:
            denied.append((now, cost, verdict))
    stored = {
        length: Window(length, list(window.leave_ms), list(window.counts), window.kept_until_ms)
        for length, window in windows.items()
    }
    for at, cost, verdict in denied:
        assert ask(stored, limits, at, cost) == verdict


@given(policies(), asked)
def test_decide_reports_limit_nearest_to_exhaustion(limits: Limits, checks: list[tuple[int, int]]) -> None:
    windows: Windows = {}
    now = START
    for step, cost in checks:
        now += step
        verdict = ask(windows, limits, now, cost)
        free = [limit.max - windows[limit.window_ms].total for limit in limits]
        assert verdict.remaining == min(free)
        nearest = limits[free.index(min(free))]
        assert verdict.limit == nearest.max
        whole = deepcopy(windows[nearest.window_ms])
        if verdict.reset_after_ms:
            whole.forget(now + verdict.reset_after_ms - 1)
            assert whole.total > 0
        whole.forget(now + verdict.reset_after_ms)
        assert whole.total == 0


@given(policies(LENGTHS[:4], highest=200), st.lists(st.integers(0, 400), max_size=400))
@settings(max_examples=20)
def test_charge_busy_client_holds_at_most_one_tick_more_than_window(
    limits: Limits, spacing: list[int]
) -> None:
    windows: Windows = {}
    now = START
    for step in spacing:
        now += step
        ask(windows, limits, now, 1)
    assert all(len(window.leave_ms) <= TICKS + 1 for window in windows.values())


# --- a policy whose windows change ------------------------------------------------------------

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
CHANGING = (
    (Limit(5, MINUTE),),
    (Limit(20, HOUR),),
    (Limit(30, DAY),),
    (Limit(40, MAX_WINDOW_MS),),
    (Limit(3, 1_000),),
    (Limit(10, HOUR), Limit(4, MINUTE)),
    (Limit(25, 2 * HOUR), Limit(2, 1_000)),
)
changing_steps = st.sampled_from(
    [
        0,
        1,
        999,
        1_000,
        1_017,
        20_000,
        MINUTE,
        MINUTE + 1_000,
        HOUR // 2,
        HOUR - 1,
        HOUR,
        HOUR + MINUTE,
        DAY - HOUR,
    ]
) | st.integers(0, 2 * HOUR)


def tracked_since(asks: list[tuple[int, int]], window_ms: int) -> int:
    """Return since when charges have been tracked over at least *window_ms*, without a gap.

    Args:
        asks: The checks so far: the time, and the longest window of the policy in force. That window is kept
            for at least its own length.
        window_ms: A window length.
    """
    since = asks[-1][0]
    for at, length in reversed(asks):
        if length >= window_ms and at + length >= since:
            since = at
    return since


@given(
    st.lists(st.tuples(changing_steps, st.sampled_from(CHANGING), st.integers(0, 4)), max_size=60),
    st.booleans(),
)
@settings(max_examples=300)
def test_reshape_changed_policy_never_exceeds_new_limits(
    checks: list[tuple[int, Limits, int]], newest_known: bool
) -> None:
    """Counts the requests admitted since a window of at least the new length has been tracked."""
    windows: Windows = {}
    log: Log = []
    asks: list[tuple[int, int]] = []
    now = START
    for step, limits, cost in checks:
        now += step
        asks.append((now, limits[0].window_ms))
        newest = max((at for at, spent in log if spent), default=0) if newest_known else 0
        if ask(windows, limits, now, cost, newest).allowed:
            log.append((now, cost))
            for limit in limits:
                since = max(tracked_since(asks, limit.window_ms), now - limit.window_ms)
                assert spent(log, since, now) <= limit.max or cost == 0


@given(
    st.sampled_from(CHANGING),
    st.lists(st.tuples(changing_steps, st.sampled_from(CHANGING), st.integers(0, 4)), max_size=30),
)
def test_reshape_policy_restored_within_window_finds_all_charges(
    policy: Limits, between: list[tuple[int, Limits, int]]
) -> None:
    """The policies in force in between do not matter."""
    windows: Windows = {}
    log: Log = []
    now = START
    ask(windows, policy, now, 0)
    for step, limits, cost in between:
        if now + step > START + policy[0].window_ms:
            break
        now += step
        if ask(windows, limits, now, cost).allowed:
            log.append((now, cost))
    while ask(windows, policy, now, 1).allowed:
        log.append((now, 1))
        for limit in policy:
            assert spent(log, now - limit.window_ms, now) <= limit.max


@given(
    st.sampled_from(CHANGING),
    st.sampled_from(CHANGING),
    st.lists(st.tuples(changing_steps, st.integers(0, 4)), max_size=20),
    st.lists(st.tuples(changing_steps, st.integers(0, 4)), max_size=20),
)
def test_reshape_changed_policy_denies_at_most_one_old_tick_longer(
    old: Limits, new: Limits, before: list[tuple[int, int]], after: list[tuple[int, int]]
) -> None:
    windows: Windows = {}
    log: Log = []
    now = START
    slack = max(tick_of(limit.window_ms) for limit in old)
    for limits, checks in ((old, before), (new, after)):
        for step, cost in checks:
            now += step
            allowed = ask(windows, limits, now, cost).allowed
            if limits is new and not allowed:
                assert any(
                    spent(log, now - limit.window_ms - tick_of(limit.window_ms) - slack + 1, now) + cost
                    > limit.max
                    for limit in limits
                )
            if allowed:
                log.append((now, cost))


@given(
    st.lists(st.tuples(changing_steps, st.sampled_from(CHANGING), st.integers(0, 4)), max_size=40),
    st.sampled_from(CHANGING),
    changing_steps,
)
def test_reshape_changed_policy_denies_no_longer_than_new_window_after_newest_charge(
    checks: list[tuple[int, Limits, int]], last: Limits, step: int
) -> None:
    """The newest charge itself counts for up to one tick of the new window longer, like any charge."""
    windows: Windows = {}
    newest, now = 0, START
    for before, limits, cost in checks:
        now += before
        if ask(windows, limits, now, cost, newest).allowed and cost:
            newest = now
    now += step
    retry = ask(windows, last, now, 1, newest).retry_after_ms
    assert retry is not None
    window_ms = last[0].window_ms
    assert now + retry <= max(now, newest + window_ms + tick_of(window_ms))


def fill(windows: Windows, limits: Limits, now_ms: int) -> int:
    admitted = 0
    while ask(windows, limits, now_ms, 1).allowed:
        admitted += 1
    return admitted


def test_reshape_minute_to_hour_and_back_keeps_quota() -> None:
    minute, hour = (Limit(100, MINUTE),), (Limit(1_000, HOUR),)
    windows: Windows = {}
    assert fill(windows, minute, START) == 100
    assert fill(windows, hour, START + 10_000) == 900
    assert fill(windows, minute, START + 20_000) == 0
    assert fill(windows, hour, START + 30 * MINUTE) == 0
    assert fill(windows, minute, START + 31 * MINUTE) == 100
    assert fill(windows, hour, START + 32 * MINUTE) == 0
    assert fill(windows, hour, START + HOUR + 2 * MINUTE) == 900


def test_reshape_retired_window_is_kept_as_long_as_needed() -> None:
    minute, hour, day = (Limit(10, MINUTE),), (Limit(20, HOUR),), (Limit(1_000, DAY),)
    windows: Windows = {}
    ask(windows, day, START, 0)
    ask(windows, minute, START + 1, 0)
    gone = START + DAY  # the day window had a limit at START for the last time
    assert fill(windows, hour, gone - 2_000) == 20
    ask(windows, minute, gone - 1_000, 0)
    ask(windows, minute, gone + 1_000, 0)
    assert fill(windows, hour, gone + 2_000) == 0
    ask(windows, minute, gone + 3_000, 0)
    ask(windows, minute, gone + 3_000 + HOUR, 0)
    assert sorted(windows) == [MINUTE, DAY]
    ask(windows, minute, gone + 3_001 + HOUR, 0)
    assert sorted(windows) == [MINUTE]


def test_reshape_returns_whether_anything_changed() -> None:
    minute, hour = (Limit(100, MINUTE),), (Limit(1_000, HOUR),)
    windows: Windows = {}
    assert reshape(windows, hour, START)
    assert not reshape(windows, hour, START + 1)
    assert reshape(windows, minute, START + 2)
    assert not reshape(windows, minute, START + 3)
    assert windows[HOUR].kept_until_ms == START + 2 + HOUR
    assert reshape(windows, hour, START + 4)
    assert windows[HOUR].kept_until_ms == 0
    assert list(windows) == [HOUR]


# --- edge cases ----------------------------------------------------------------------------------


def test_decide_limit_of_zero_denies_all_but_cost_0() -> None:
    windows: Windows = {}
    blocked = (Limit(0, MINUTE),)
    assert ask(windows, blocked, START, 1) == Decision(False, 0, 0, 0, None, VERSION)
    assert ask(windows, blocked, START, 0) == Decision(True, 0, 0, 0, 0, VERSION)


def test_decide_largest_limit_is_exact() -> None:
    windows: Windows = {}
    huge = (Limit(MAX_LIMIT, MAX_WINDOW_MS),)
    assert ask(windows, huge, START, MAX_COST).remaining == MAX_LIMIT - MAX_COST
    windows[MAX_WINDOW_MS].charge(START, MAX_LIMIT - MAX_COST - 1)
    assert ask(windows, huge, START, 1).remaining == 0
    assert ask(windows, huge, START, 1) == Decision(
        False, MAX_LIMIT, 0, reset_of(MAX_WINDOW_MS), reset_of(MAX_WINDOW_MS), VERSION
    )


def reset_of(window_ms: int) -> int:
    """Return the milliseconds until a charge at START has left the window."""
    tick = tick_of(window_ms)
    return (START // tick + 1) * tick + window_ms - START


def test_decide_lowered_limit_denies_until_enough_has_left() -> None:
    windows: Windows = {}
    assert ask(windows, (Limit(10, MINUTE),), START, 10).remaining == 0
    verdict = ask(windows, (Limit(3, MINUTE),), START, 1)
    assert verdict == Decision(False, 3, 0, reset_of(MINUTE), reset_of(MINUTE), VERSION)
    assert not ask(windows, (Limit(3, MINUTE),), START, 0).allowed


def test_decide_several_limits_charges_all_or_none() -> None:
    limits = (Limit(100, HOUR), Limit(2, 1_000))
    windows: Windows = {}
    assert [ask(windows, limits, START, 1).allowed for _ in range(4)] == [True, True, False, False]
    assert {length: window.total for length, window in windows.items()} == {HOUR: 2, 1_000: 2}


def test_charge_before_newest_tick_charges_newest_tick() -> None:
    window = Window(MINUTE)
    window.charge(START, 1)
    window.charge(START - 5_000, 1)
    assert (len(window.leave_ms), window.counts) == (1, [2])


def test_free_at_ms_more_than_total_raises() -> None:
    window = Window(MINUTE)
    window.charge(START, 1)
    with pytest.raises(ValueError, match="more than the window holds"):
        window.free_at_ms(2)
