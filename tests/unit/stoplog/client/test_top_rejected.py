from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from stoplog.client.top_rejected import (
    ENTRIES,
    SLICE_S,
    SLICES,
    Rejected,
    Rejections,
    SpaceSaving,
    merge_summaries,
    ranked,
)


class Time:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.integers(1, 9))), st.integers(1, 8))
def test_summary_is_never_too_low_and_its_surplus_bounds_its_error(
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


def test_summary_lists_the_most_rejected_first_and_drops_the_least() -> None:
    rejections = Rejections(Time())
    for i in range(10 * ENTRIES):
        rejections.add(f"once-{i}")
        rejections.add("often")
    rejections.add("at once", 500)
    first, second, *others = ranked(rejections.summary())
    assert first == Rejected("often", 10 * ENTRIES, 0)
    assert (second.client_id, second.checks - second.surplus) == ("at once", 500)
    assert len(others) == ENTRIES - 2


def test_rejections_older_than_five_minutes_are_forgotten() -> None:
    time = Time()
    rejections = Rejections(time)
    rejections.add("early")
    for _ in range(SLICES - 1):
        time.now += SLICE_S
        rejections.tick()
        rejections.add("always")
    assert [(e.client_id, e.checks) for e in ranked(rejections.summary())] == [
        ("always", SLICES - 1),
        ("early", 1),
    ]
    time.now += SLICE_S
    assert [(e.client_id, e.checks) for e in ranked(rejections.summary())] == [("always", SLICES - 1)]
    time.now += 1e9
    assert ranked(rejections.summary()) == []
    rejections.add("back")
    assert len(ranked(rejections.summary())) == 1


@given(st.lists(st.lists(st.tuples(st.sampled_from(range(3 * ENTRIES)), st.integers(1, 9))), max_size=4))
def test_merged_summaries_are_never_too_low(streams: list[list[tuple[int, int]]]) -> None:
    exact, summaries = Counter[str](), []
    for stream in streams:
        summary = SpaceSaving(ENTRIES)
        # A flood under it, so that the summaries are full.
        for number, times in [*stream, *((number, 1) for number in range(len(stream) % 2 * 2 * ENTRIES))]:
            summary.add(str(number), times)
            exact[str(number)] += times
        summaries.append(summary.counts)
    one = merge_summaries(summaries)
    assert len(one) == min(ENTRIES, len(exact))
    for key, (count, surplus) in one.items():
        assert count - surplus <= exact[key] <= count
    least = min((count for count, _ in one.values()), default=0)
    assert all(exact[key] <= least for key in exact.keys() - one.keys())
