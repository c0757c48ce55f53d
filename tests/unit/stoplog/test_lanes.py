from __future__ import annotations

import pytest

from stoplog.errors import InvalidInput
from stoplog.lanes import MAX_LANES, changelogs_of, lane_names, lane_of, with_lanes
from stoplog.topics import COUNTERS_CHANGELOG, POLICIES_CHANGELOG, load_topics


def test_with_lanes_adds_two_changelogs_configured_as_the_default_ones() -> None:
    specs = load_topics()
    assert with_lanes(specs, lane_names(1)) == specs
    both = with_lanes(specs, lane_names(2))
    added = sorted(both.keys() - specs.keys())
    assert added == ["stoplog-b-counters-changelog", "stoplog-b-policies-changelog"]
    for default, own in zip((COUNTERS_CHANGELOG, POLICIES_CHANGELOG), added, strict=True):
        assert both[own].name == own
        assert (both[own].partitions, both[own].config()) == (
            specs[default].partitions,
            specs[default].config(),
        )


def test_all_lanes_have_different_names_and_changelogs() -> None:
    names = lane_names(MAX_LANES)
    assert len(set(names)) == len(names) == MAX_LANES
    topics = [topic for lane in (*names, "counters", "policies") for topic in changelogs_of(lane).values()]
    assert len(set(topics)) == len(topics)


@pytest.mark.parametrize("name", ["owner", "restore", "gateway", "B", "a-b", "123456789"])
def test_lane_of_a_name_that_cannot_be_used_raises_with_a_remedy(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"use 1 to 8|choose another"):
        lane_of(name)
