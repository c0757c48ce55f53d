"""Which limit updates were read, and until when it is proven that none was missed.

Answers that a gateway gives by itself, without the log, are correct only if it knows of every update that may
concern them. The deny cache and the lease cache use this module for that. It is pure: no Kafka, no timers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from stoplog.wire.limit_updates import UpdateKey

PROOF_S: Final = 0.2
"""Maximum age of a proof, in seconds. The confirmation of a change is delayed by the same time. A gateway at
its core's limit gets its next proof late, so a shorter time would send more checks to the log."""


class PartitionProof:
    """The state of one partition's updates, to which the answers of a cache refer.

    Attributes:
        index: The partition.
        last_update: Offset of the last update read; -1 before the first.
        proven_until: When the proof expires, in seconds; -inf before the first proof.
    """

    __slots__ = ("index", "last_update", "proven_until")

    def __init__(self, index: int, last_update: int = -1, proven_until: float = -inf) -> None:
        self.index = index
        self.last_update = last_update
        self.proven_until = proven_until

    def covers(self, applied: int) -> bool:
        """Return whether a reply of a worker that had applied the updates up to *applied* may be kept.

        The worker must have applied every update that was read here, and there must have been a proof.
        """
        return applied >= self.last_update and self.proven_until != -inf


class UpdateProofs:
    """The partitions of ``limit-updates``.

    Args:
        partitions: Their number.
    """

    def __init__(self, partitions: int) -> None:
        self._partitions = [PartitionProof(index) for index in range(partitions)]

    def of(self, partition: int) -> PartitionProof:
        """Return the present state of *partition*. An update of a plan or the default replaces it."""
        return self._partitions[partition]

    def on_update(self, partition: int, update: UpdateKey, version: int) -> str | None:
        """Note an update, whether or not a worker has applied it.

        Args:
            partition: Partition of ``limit-updates``.
            update: Key of the update.
            version: Its offset.

        Returns:
            The client that it concerns; ``None`` if it may concern all clients of the partition. The state
            that was returned for the partition before is then never proven again.
        """
        proof = self._partitions[partition]
        proof.last_update = version
        if update.kind in ("client", "reset"):
            return update.id
        self._partitions[partition] = PartitionProof(partition, version, proof.proven_until)
        proof.proven_until = -inf
        return None

    def on_proof(self, partitions: Sequence[int], at: float) -> None:
        """Note that every update written to *partitions* before *at* (seconds) has been read."""
        for partition in partitions:
            self._partitions[partition].proven_until = at + PROOF_S
