from __future__ import annotations

import pytest

from stoplog.kafka.partition_count import explain_difference
from stoplog.wire.partition_count import PartitionCount


@pytest.mark.parametrize(
    ("found", "in_file", "texts"),
    [
        ({"checks": 8, "limit-updates": 8}, 4, ["checks has 8 and limit-updates has 8", "above 3"]),
        ({"checks": 4}, 8, ["although topics.yaml requires 8", "Set partitions: 4"]),
        ({"checks": 8}, 8, ["checks has 8 and topics.yaml requires 8", "above 3", "Set partitions: 4"]),
    ],
)
def test_difference_names_topics_and_remedy(found: dict[str, int], in_file: int, texts: list[str]) -> None:
    difference = explain_difference(PartitionCount(4), found, in_file)
    assert difference is not None
    assert all(text in difference for text in ("over the 4 partitions", *texts))


def test_topics_that_agree_have_no_difference() -> None:
    assert explain_difference(PartitionCount(4), {"checks": 4, "limit-updates": 4}, 4) is None
