from __future__ import annotations

import pytest

from stoplog.partitioning import partition_of


@pytest.mark.parametrize(
    ("client", "hashed"),
    # Test values of Kafka itself (clients, UtilsTest.testMurmur2).
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
    ],
)
def test_partition_of_equals_the_java_clients_partition(client: str, hashed: int) -> None:
    for partitions in (1, 4, 64):
        assert partition_of(client, partitions) == (hashed & 0x7FFFFFFF) % partitions
