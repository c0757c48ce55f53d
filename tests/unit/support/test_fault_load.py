"""How long hot clients got exact answers, by the answers of the fault tests."""

from __future__ import annotations

import pytest

from stoplog.partitioning import partition_of
from tests.support.faults.check_sender import HOT_CLIENTS
from tests.support.faults.load import PARTITIONS, SentCheck, exact_s

PARTITION = 2
HOT = [name for name in HOT_CLIENTS if partition_of(name, PARTITIONS) == PARTITION]


def answers(client: str, gateway: str, *degraded: bool) -> list[SentCheck]:
    """Return a check a second, from 10 on."""
    return [
        SentCheck(gateway, client, float(second), second + 0.1, {"degraded": one})
        for second, one in enumerate(degraded, start=10)
    ]


@pytest.mark.parametrize(
    ("third", "median_s"),
    [((False, False, True, True), 2.0), ((False, False, False, False), 3.0), ((True, True, True, True), 1.0)],
)
def test_client_that_never_failed_open_counts_as_later_than_all_others(
    third: tuple[bool, ...], median_s: float
) -> None:
    sent = [
        *answers(HOT[0], "g1", True, True, False, True),  # what failed open before the fault is no news
        *answers(HOT[0], "g2", False, False, False, True),
        *answers(HOT[1], "g1", *third),
        *answers("client-1", "g1", True, True, True, True),
    ]
    assert exact_s(sent, 10.5, {PARTITION}) == median_s - 0.5
    assert exact_s(sent, 10.5, {PARTITION - 1}) is None


def test_time_of_clients_that_mostly_never_failed_open_has_no_end() -> None:
    sent = [
        *answers(HOT[0], "g1", False, True),
        *answers(HOT[0], "g2", False, False),
        *answers(HOT[1], "g1", False, False),
    ]
    assert exact_s(sent, 10.5, {PARTITION}) is None
