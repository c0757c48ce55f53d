from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.rejections import ENTRIES, SLICE_S, SLICES, Rejected, Rejections, SpaceSaving


class Time:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.integers(1, 9))), st.integers(1, 8))
def test_a_summary_is_never_too_low_and_says_by_how_much_it_may_be_too_high(
    stream: list[tuple[str, int]], entries: int
) -> None:
    summary, exact = SpaceSaving(entries), Counter[str]()
    for key, times in stream:
        summary.add(key, times)
        exact[key] += times
    total = exact.total()
    assert len(summary.counts) <= entries
    assert sum(count for count, _ in summary.counts.values()) == total
    for key, (count, surplus) in summary.counts.items():
        assert count - surplus <= exact[key] <= count
        assert surplus <= total // entries
    assert {key for key, count in exact.items() if count > total / entries} <= summary.counts.keys()


def test_the_most_rejected_come_first_and_the_least_leave() -> None:
    rejections = Rejections(Time())
    for i in range(10 * ENTRIES):
        rejections.add(f"once-{i}")
        rejections.add("often")
    rejections.add("at once", 500)
    first, second, *others = rejections.top()
    assert first == Rejected("often", 10 * ENTRIES, 0)
    assert (second.client_id, second.checks - second.surplus) == ("at once", 500)
    assert len(others) == ENTRIES - 2


def test_what_was_minutes_ago_is_forgotten() -> None:
    time = Time()
    rejections = Rejections(time)
    rejections.add("early")
    for _ in range(SLICES - 1):
        time.now += SLICE_S
        rejections.tick()
        rejections.add("always")
    assert [(e.client_id, e.checks) for e in rejections.top()] == [("always", SLICES - 1), ("early", 1)]
    time.now += SLICE_S
    assert [(e.client_id, e.checks) for e in rejections.top()] == [("always", SLICES - 1)]
    time.now += 1e9
    assert rejections.top() == []
    rejections.add("back")
    assert len(rejections.top()) == 1
