"""From what Faust assigns to who holds which partition's store: the restorer or the owner.

All of it runs on the event loop; restorer and owner call back into it through the loop. A store is held by
exactly one of them, or lies here between two moves, or is closed. One that has been given up by its holder
and whose callback has not run yet still counts as held: it is placed when the callback comes.
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

_log = logging.getLogger("stoplog.ownership")

_FLUSH_S: Final = 5.0
"""Seconds a flush may take when partitions are let go; what it does not write is replayed."""
_LEAVE_S: Final = 30.0
"""Seconds for which a partition that has moved is answered here, unless its new owner begins."""
_STOP_S: Final = 5.0
"""The same for a worker that stops."""


class Holder(Enum):
    """Which thread has a partition's store."""

    OWNER = auto()
    RESTORER = auto()


class Ownership:
    """Moves partitions between restorer and owner.

    Args:
        owner: Judges active partitions.
        restorer: Opens and restores them, and follows the standbys.
        lease: After it ran out, dropped partitions start again only when it holds.
        member: The current member id in the group.
        changed: Called when :meth:`partition_states` has something new to say.
    """

    def __init__(
        self,
        owner: ConsumerThread,
        restorer: Restorer,
        lease: Lease,
        member: Callable[[], str],
        changed: Callable[[], None],
    ) -> None:
        self._owner = owner
        self._restorer = restorer
        self._lease = lease
        self._member = member
        self._changed = changed
        self._generation = -1
        self._last_member = ""
        self._actives: set[int] = set()
        self._standbys: set[int] = set()
        self._held: dict[int, Holder] = {}
        self._here: dict[int, PartitionStore] = {}
        self._stopping = False
        self._lock = asyncio.Lock()
        self._moved = asyncio.Condition(self._lock)

    def _held_by(self, holder: Holder) -> set[int]:
        return {partition for partition, by in self._held.items() if by is holder}

    async def revoked(self) -> None:
        """A rebalance begins: flush, and write no more; checks are answered on."""
        self._owner.generation = None
        await asyncio.wrap_future(self._owner.revoke_all(_FLUSH_S))

    async def assigned(self, generation: int, actives: set[int], standbys: set[int]) -> None:
        """A rebalance ended: keep what stayed, let go of what left, restore what came."""
        async with self._lock:
            if self._stopping:
                return
            member = self._member()
            # Nobody can have owned them between two generations of one member, one after the other.
            unbroken = generation == self._generation + 1 and member == self._last_member
            self._generation, self._last_member = generation, member
            self._actives, self._standbys = actives, standbys
            self._owner.generation = generation
            owned = self._held_by(Holder.OWNER)
            stay = owned & actives if unbroken else set()
            kept = await asyncio.wrap_future(self._owner.resume(generation, stay))
            await asyncio.wrap_future(self._owner.hand_over(owned - actives, _LEAVE_S))
            for partition in owned & actives - kept:
                # Another may have written meanwhile: what that was is to be read first.
                self._returned(partition, await asyncio.wrap_future(self._owner.release(partition)))
            for partition in self._held_by(Holder.RESTORER) - actives - standbys:
                self._returned(partition, await asyncio.wrap_future(self._restorer.release(partition)))
            for partition in sorted(actives | standbys | self._here.keys()):
                await self._place(partition)
            self._restorer.watch(kept)
        self._changed()
        _log.info(
            "generation %s: active %s (kept %s), standby %s",
            generation,
            sorted(actives),
            sorted(kept),
            sorted(standbys),
        )

    def _returned(self, partition: int, store: PartitionStore | None) -> None:
        """Its holder has let go of it; without a store, that is on its way here already."""
        if store is not None:
            del self._held[partition]
            self._here[partition] = store

    async def _place(self, partition: int) -> None:
        """Bring what lies here, or is open nowhere, to where the assignment wants it."""
        holder, store = self._held.get(partition), self._here.pop(partition, None)
        if partition not in self._actives and partition not in self._standbys:
            if store is not None:
                await asyncio.to_thread(store.close)
            return
        if holder is Holder.OWNER:
            return
        if store is not None:
            self._restorer.follow(store)
        elif holder is None:
            self._restorer.open(partition)
        self._held[partition] = Holder.RESTORER
        self._restorer.activate(self._generation if partition in self._actives else None, partition)

    @property
    def _settled(self) -> bool:
        """Whether the assignment is in force: no rebalance has begun since."""
        return self._owner.generation == self._generation

    async def restored(self, restored: Restored) -> None:
        """The restorer has caught up with a partition: the owner takes it, if that is still wanted."""
        async with self._lock:
            partition = restored.store.partition
            del self._held[partition]
            if await asyncio.wrap_future(self._owner.start_partition(restored)):
                self._held[partition] = Holder.OWNER
                self._restorer.watch(self._held_by(Holder.OWNER))
                self._changed()
            else:
                self._here[partition] = restored.store
                if self._settled:
                    await self._place(partition)

    async def dropped(self, stores: list[PartitionStore]) -> None:
        """The owner judges partitions no longer: place them, as soon as the lease holds (again)."""
        async with self._lock:
            for store in stores:
                del self._held[store.partition]
                self._here[store.partition] = store
            self._restorer.watch(self._held_by(Holder.OWNER))
            self._moved.notify_all()
        while not self._lease.holds():  # noqa: ASYNC110 - a lease is a time, not an event
            await asyncio.sleep(0.05)
        async with self._lock:
            for store in stores:
                # Otherwise the assignment that follows a rebalance places it, or has done so.
                if self._settled and store.partition in self._here:
                    await self._place(store.partition)

    async def let_go(self) -> None:
        """Flush, and write no more; awaited before the group is left. No assignment changes that."""
        async with self._lock:
            self._stopping = True
            self._owner.generation = None
            await asyncio.wrap_future(self._owner.revoke_all(_FLUSH_S))

    async def stop(self) -> None:
        """Answer on until others do, if there are any; then close everything."""
        with suppress(Unavailable, TimeoutError):  # the owner has ended, or waits for brokers
            async with asyncio.timeout(_STOP_S + 1):
                if await asyncio.wrap_future(self._owner.has_peers()):
                    await asyncio.wrap_future(self._owner.hand_over(self._held_by(Holder.OWNER), _STOP_S))
                    async with self._moved:
                        await self._moved.wait_for(lambda: not self._held_by(Holder.OWNER))
        stores = await asyncio.to_thread(self._owner.stop, _STOP_S)
        await asyncio.to_thread(self._restorer.stop)
        for store in (*stores, *self._here.values()):
            await asyncio.to_thread(store.close)

    def partition_states(self) -> dict[int, PartitionState]:
        """Every partition here and its state: running, restoring or standby."""
        beats = self._owner.partition_states()
        for partition in self._held_by(Holder.RESTORER) - beats.keys():
            beats[partition] = PartitionState(RESTORING if partition in self._actives else STANDBY)
        return dict(sorted(beats.items()))
