"""The phases of a partition on this worker: what the worker may do with it, and what ends each phase."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final


class PartitionPhase(Enum):
    """A partition's phase on this worker, which determines what the worker may do.

    Answering needs no ownership: a decision is a function of the log, so every worker that processes the
    partition gives the same answer. Writing (changelogs, relayed updates, tables) needs ownership.

    ============  =======  ===================================================================
    phase         answers  writes
    ============  =======  ===================================================================
    ACTIVE        yes      while the group lease holds
    REVOKING      yes      one last checkpoint, up to its goal, while the group lease holds
    HANDING_OVER  yes      never
    ============  =======  ===================================================================

    Transitions; "absent" is a partition that this worker does not process:

    ============  ====================================================================  ============
    from          event                                                                 to
    ============  ====================================================================  ============
    absent        it is restored, and its generation is still current                   ACTIVE
    ACTIVE        a rebalance begins                                                    REVOKING
    ACTIVE        another worker is ahead, or the lease stays lost                      absent
    REVOKING      the rebalance ends and leaves it here                                 ACTIVE
    REVOKING      the rebalance moves it to another worker, or this worker stops        HANDING_OVER
    REVOKING      it must be restored again, or the rebalance does not end              absent
    HANDING_OVER  the new owner's heartbeat arrives, time is up, or it comes back here  absent
    ============  ====================================================================  ============
    """

    ACTIVE = auto()
    REVOKING = auto()
    HANDING_OVER = auto()


TRANSITIONS: Final = frozenset(
    {
        (None, PartitionPhase.ACTIVE),
        (PartitionPhase.ACTIVE, PartitionPhase.REVOKING),
        (PartitionPhase.ACTIVE, None),
        (PartitionPhase.REVOKING, PartitionPhase.ACTIVE),
        (PartitionPhase.REVOKING, PartitionPhase.HANDING_OVER),
        (PartitionPhase.REVOKING, None),
        (PartitionPhase.HANDING_OVER, None),
    }
)
"""The table above; ``None`` stands for absent."""
