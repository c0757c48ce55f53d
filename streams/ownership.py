"""From what Faust assigns to who holds which partition's store: the restorer or the owner.

All of it runs on the event loop; restorer and owner call back into it through the loop. A store is held
by exactly one of them at any time, or by nobody and closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from streams.contract.records import PartitionBeat
from streams.lease import Lease
from streams.owner import Owner
from streams.restore import Restored, Restorer
from streams.store import PartitionStore

_log = logging.getLogger("sluice.ownership")

_FLUSH_S: Final = 5.0
"""Seconds a flush may take when partitions are let go; what it does not write is replayed."""


class Ownership:
    """Moves partitions between restorer and owner.

    Args:
        owner: Judges active partitions.
        restorer: Restores them, and follows the standbys.
        lease: After it ran out, dropped partitions start again only when it holds.
        open_store: Opens a partition's tables.
        member: The current member id in the group.
        changed: Called when :meth:`beats` has something new to say.
    """

    def __init__(
        self,
        owner: Owner,
        restorer: Restorer,
        lease: Lease,
        open_store: Callable[[int], PartitionStore],
        member: Callable[[], str],
        changed: Callable[[], None],
    ) -> None:
        self._owner = owner
        self._restorer = restorer
        self._lease = lease
        self._open = open_store
        self._member = member
        self._changed = changed
        self._generation = -1
        self._last_member = ""
        self._actives: set[int] = set()
        self._owned: set[int] = set()
        self._followed: set[int] = set()
        self._lapsed: dict[int, PartitionStore] = {}
        self._lock = asyncio.Lock()

    async def revoked(self) -> None:
        """A rebalance begins: flush and park all."""
        self._owner.generation = None
        await asyncio.wrap_future(self._owner.park_all(_FLUSH_S))

    async def assigned(self, generation: int, actives: set[int], standbys: set[int]) -> None:
        """A rebalance ended: keep what stayed, let go of what left, restore what came."""
        async with self._lock:
            member = self._member()
            # Nobody can have owned them between two generations of one member, one after the other.
            unbroken = generation == self._generation + 1 and member == self._last_member
            self._generation, self._last_member = generation, member
            self._owner.generation = generation
            self._actives = actives
            kept = self._owned & actives if unbroken else set()
            if kept:
                await asyncio.wrap_future(self._owner.resume(generation, kept))
            loose = dict(self._lapsed)
            self._lapsed.clear()
            for partition in self._owned - kept:
                store = await asyncio.wrap_future(self._owner.release(partition))
                if store is not None:
                    loose[partition] = store
            self._owned = kept
            for partition in self._followed - actives - standbys:
                store = await asyncio.wrap_future(self._restorer.release(partition))
                if store is not None:
                    loose[partition] = store
            self._followed &= actives | standbys
            for partition in sorted(actives - kept):
                self._activate(partition, loose.pop(partition) if partition in loose else None)
            for partition in sorted(standbys - self._followed):
                store = loose.pop(partition) if partition in loose else self._open(partition)
                self._restorer.follow(store)
                self._followed.add(partition)
            for store in loose.values():
                store.close()
            self._restorer.watch(self._owned)
        self._changed()
        _log.info(
            "generation %s: active %s (kept %s), standby %s",
            generation,
            sorted(actives),
            sorted(kept),
            sorted(standbys),
        )

    def _activate(self, partition: int, store: PartitionStore | None) -> None:
        if store is None and partition not in self._followed:
            store = self._open(partition)
        self._restorer.activate(self._generation, store, partition)
        self._followed.add(partition)

    async def restored(self, restored: Restored) -> None:
        """The restorer has caught up with a partition; it is nobody's until the owner takes it."""
        async with self._lock:
            partition = restored.store.partition
            self._followed.discard(partition)
            if await asyncio.wrap_future(self._owner.start_partition(restored)):
                self._owned.add(partition)
                self._restorer.watch(self._owned)
                self._changed()
            else:
                # A rebalance has begun: the next assignment finds it here.
                self._lapsed[partition] = restored.store

    async def lapsed(self, stores: list[PartitionStore]) -> None:
        """The owner has dropped partitions: restore them as soon as the lease holds again."""
        generation = self._generation
        async with self._lock:
            for store in stores:
                self._owned.discard(store.partition)
                self._lapsed[store.partition] = store
            self._restorer.watch(self._owned)
        while not self._lease.holds():  # noqa: ASYNC110 - a lease is a time, not an event
            await asyncio.sleep(0.05)
        async with self._lock:
            if generation != self._generation or self._owner.generation != generation:
                return  # the rebalance that follows deals with them
            for store in stores:
                if self._lapsed.pop(store.partition, None) is not None:
                    self._activate(store.partition, store)

    async def stop(self) -> None:
        """Flush, and close everything."""
        self._owner.generation = None
        for store in await asyncio.to_thread(self._owner.stop, _FLUSH_S):
            store.close()
        await asyncio.to_thread(self._restorer.stop)
        for store in self._lapsed.values():
            store.close()

    def beats(self) -> dict[int, PartitionBeat]:
        """Every partition here and its state: running, restoring or standby."""
        beats = self._owner.beats()
        for partition in self._followed - beats.keys():
            beats[partition] = PartitionBeat("restoring" if partition in self._actives else "standby")
        return beats
