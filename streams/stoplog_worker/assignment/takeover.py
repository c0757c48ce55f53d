"""The takeover of a partition: move its store between the threads of this worker.

Faust's assignment decides where a store belongs. The *owner* (the consumer thread) holds the store of a
partition that is active here. The restorer holds the store of a standby, or of a partition to become active.

The coordinator runs on the event loop. Restorer and owner call back into it through the loop. Exactly one of
them holds a store, or the coordinator does between two moves, or the store is closed. A store that its holder
has given up, and whose callback has not run yet, still counts as held. The callback places it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Final

from stoplog.errors import Unavailable
from stoplog.wire.heartbeats import RESTORING, STANDBY, PartitionState
from stoplog_worker.consumer.consumer_thread import ConsumerThread
from stoplog_worker.lease import Lease
from stoplog_worker.restore.restorer import Restored, Restorer
from stoplog_worker.state.store import PartitionStore

_log = logging.getLogger("stoplog.assignment")

_CHECKPOINT_S: Final = 5.0
"""Seconds a checkpoint may take when partitions are revoked; the rest is replayed."""
_HAND_OVER_S: Final = 30.0
"""Seconds for which checks of a partition that has moved are answered here, unless its new owner begins."""
_STOP_S: Final = 5.0
"""The same for a worker that stops."""
_LEASE_POLL_S: Final = 0.05


class Holder(Enum):
    """The holder of a partition's store.

    ===========  ==================================================================================
    holder       meaning
    ===========  ==================================================================================
    CLOSED       the store is open nowhere
    RESTORER     the restorer reads its changelogs: a standby, or a partition to become active
    OWNER        the consumer thread decides the partition's checks
    COORDINATOR  the store is between two moves
    ===========  ==================================================================================

    ===========  ===========  =====================================================================
    from         to           when
    ===========  ===========  =====================================================================
    CLOSED       RESTORER     the partition is assigned, as active or standby
    RESTORER     OWNER        it is restored, and the owner starts it
    RESTORER     COORDINATOR  it is no longer assigned; or it is restored for an earlier generation
    OWNER        COORDINATOR  it has moved, or its generation ended, or the lease ran out
    COORDINATOR  RESTORER     it is assigned
    COORDINATOR  CLOSED       it is not assigned
    ===========  ===========  =====================================================================
    """

    CLOSED = auto()
    RESTORER = auto()
    OWNER = auto()
    COORDINATOR = auto()


class AssignmentCoordinator:
    """Moves partitions between restorer and owner.

    Args:
        owner: Decides the checks of active partitions.
        restorer: Opens and restores partitions, and keeps standbys up to date.
        lease: A partition that was dropped because the lease ran out is placed again when the lease holds.
        member: Returns the current member id in the group.
        on_change: Called when :meth:`partition_states` has changed.
    """

    def __init__(
        self,
        owner: ConsumerThread,
        restorer: Restorer,
        lease: Lease,
        member: Callable[[], str],
        on_change: Callable[[], None],
    ) -> None:
        self._owner = owner
        self._restorer = restorer
        self._lease = lease
        self._member = member
        self._on_change = on_change
        self._generation = -1
        self._last_member = ""
        self._actives: set[int] = set()
        self._standbys: set[int] = set()
        self._holders: dict[int, Holder] = {}
        """The holder of each store that is open."""
        self._stores: dict[int, PartitionStore] = {}
        """The stores that the coordinator holds."""
        self._stopping = False
        self._lock = asyncio.Lock()
        self._owner_gave_up = asyncio.Condition(self._lock)

    def holder(self, partition: int) -> Holder:
        """Return the holder of the store of *partition*."""
        return self._holders.get(partition, Holder.CLOSED)

    def _held_by(self, holder: Holder) -> set[int]:
        return {partition for partition, by in self._holders.items() if by is holder}

    async def on_revoked(self) -> None:
        """Write a last checkpoint, because a rebalance begins. Checks are still answered."""
        self._owner.generation = None
        await asyncio.wrap_future(self._owner.revoke_all(_CHECKPOINT_S))

    async def on_assigned(self, generation: int, actives: set[int], standbys: set[int]) -> None:
        """Keep the partitions that stayed, hand over those that left, and restore new ones.

        Args:
            generation: The group's new generation.
            actives: Partitions whose checks this worker decides.
            standbys: Partitions of which this worker keeps a copy.
        """
        async with self._lock:
            if self._stopping:
                return
            member = self._member()
            # No other worker can have owned a partition between two consecutive generations of one member.
            unbroken = generation == self._generation + 1 and member == self._last_member
            self._generation, self._last_member = generation, member
            self._actives, self._standbys = actives, standbys
            self._owner.generation = generation
            owned = self._held_by(Holder.OWNER)
            stay = owned & actives if unbroken else set()
            kept = await asyncio.wrap_future(self._owner.resume(generation, stay))
            await asyncio.wrap_future(self._owner.hand_over(owned - actives, _HAND_OVER_S))
            for partition in owned & actives - kept:
                # Another worker may have written in the meantime, so the changelogs must be read first.
                self._take_back(await asyncio.wrap_future(self._owner.release(partition)))
            for partition in self._held_by(Holder.RESTORER) - actives - standbys:
                self._take_back(await asyncio.wrap_future(self._restorer.release(partition)))
            for partition in sorted(actives | standbys | self._stores.keys()):
                await self._place(partition)
            self._restorer.watch(kept)
        self._on_change()
        _log.info(
            "generation %s: active %s (kept %s), standby %s",
            generation,
            sorted(actives),
            sorted(kept),
            sorted(standbys),
        )

    def _take_back(self, store: PartitionStore | None) -> None:
        """Hold the store that its holder returned. Without a store, the holder's callback is on its way."""
        if store is not None:
            self._hold(store)

    def _hold(self, store: PartitionStore) -> None:
        self._holders[store.partition] = Holder.COORDINATOR
        self._stores[store.partition] = store

    async def _place(self, partition: int) -> None:
        """Move a store that the coordinator holds, or that is closed, to where the assignment demands it."""
        holder = self.holder(partition)
        if partition not in self._actives and partition not in self._standbys:
            if holder is Holder.COORDINATOR:
                del self._holders[partition]
                await asyncio.to_thread(self._stores.pop(partition).close)
            return
        if holder is Holder.OWNER:
            return
        if holder is Holder.COORDINATOR:
            self._restorer.follow(self._stores.pop(partition))
        elif holder is Holder.CLOSED:
            self._restorer.open(partition)
        self._holders[partition] = Holder.RESTORER
        self._restorer.activate(self._generation if partition in self._actives else None, partition)

    @property
    def _settled(self) -> bool:
        """Whether the assignment is in force: no rebalance has begun since."""
        return self._owner.generation == self._generation

    async def on_restored(self, restored: Restored) -> None:
        """Pass a restored partition to the owner, unless its generation is over."""
        async with self._lock:
            partition = restored.store.partition
            if await asyncio.wrap_future(self._owner.start_partition(restored)):
                self._holders[partition] = Holder.OWNER
                self._restorer.watch(self._held_by(Holder.OWNER))
                self._on_change()
            else:
                self._hold(restored.store)
                if self._settled:
                    await self._place(partition)

    async def on_dropped(self, stores: list[PartitionStore]) -> None:
        """Place the partitions that the owner has given up, as soon as the lease holds."""
        async with self._lock:
            for store in stores:
                self._hold(store)
            self._restorer.watch(self._held_by(Holder.OWNER))
            self._owner_gave_up.notify_all()
        while not self._lease.holds():  # noqa: ASYNC110 - a lease is a time, not an event
            await asyncio.sleep(_LEASE_POLL_S)
        async with self._lock:
            for store in stores:
                # Otherwise the assignment after the rebalance places it, or has placed it already.
                if self._settled and self.holder(store.partition) is Holder.COORDINATOR:
                    await self._place(store.partition)

    async def prepare_to_leave(self) -> None:
        """Write a last checkpoint before this worker leaves the group. Ignore assignments from now on."""
        async with self._lock:
            self._stopping = True
            self._owner.generation = None
            await asyncio.wrap_future(self._owner.revoke_all(_CHECKPOINT_S))

    async def stop(self, *, hand_over: bool = True) -> None:
        """Close everything.

        Args:
            hand_over: Answer checks until other workers do, if there are any.
        """
        with suppress(Unavailable, TimeoutError):  # the owner has ended, or waits for brokers
            async with asyncio.timeout(_STOP_S + 1):
                if hand_over and await asyncio.wrap_future(self._owner.has_peers()):
                    await asyncio.wrap_future(self._owner.hand_over(self._held_by(Holder.OWNER), _STOP_S))
                    async with self._owner_gave_up:
                        await self._owner_gave_up.wait_for(lambda: not self._held_by(Holder.OWNER))
        stores = await asyncio.to_thread(self._owner.stop, _STOP_S)
        await asyncio.to_thread(self._restorer.stop)
        for store in (*stores, *self._stores.values()):
            await asyncio.to_thread(store.close)

    def partition_states(self) -> dict[int, PartitionState]:
        """Return the state of every partition here: running, restoring or standby."""
        states = self._owner.partition_states()
        for partition in self._held_by(Holder.RESTORER) - states.keys():
            states[partition] = PartitionState(RESTORING if partition in self._actives else STANDBY)
        return dict(sorted(states.items()))
