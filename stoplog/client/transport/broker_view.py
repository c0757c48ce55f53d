"""The broker's metadata of the topic ``checks``, and the number of partitions in force."""

from __future__ import annotations

import msgspec

from stoplog.wire.partition_count import NO_STEP, GrowthStep, PartitionCount


class BrokerView(msgspec.Struct, frozen=True):
    """The broker's metadata of the topic ``checks``, and the number of partitions in force.

    Attributes:
        partitions: Number of partitions; 0 if the topic does not exist.
        recorded: Number of partitions in force, as recorded in ``limit-updates``; ``None`` if it is not
            recorded.
        under_replicated: Partitions with fewer in-sync replicas than replicas.
        step: The last step in which that number grew, or the one under way.
        error: Why there is no answer; ``None`` if the broker answered.
    """

    partitions: int = 0
    recorded: PartitionCount | None = None
    under_replicated: tuple[int, ...] = ()
    error: str | None = None
    step: GrowthStep = NO_STEP
