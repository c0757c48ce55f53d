"""Whatever comes in whatever order: at rest, each partition is where the assignment wants it, open once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar, cast

from hypothesis import given
from hypothesis import strategies as st
from stoplog_worker.assignment.coordinator import Ownership
from stoplog_worker.consumer.consumer_thread import ConsumerThread
from stoplog_worker.lease import Lease
from stoplog_worker.restore.restorer import Restored, Restorer
from stoplog_worker.state.store import PartitionStore

PARTITIONS = range(4)
T = TypeVar("T")


def done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future


class Store:
    """Tables that, like RocksDB, cannot be open twice."""

    def __init__(self, partition: int, opened: set[int]) -> None:
        assert partition not in opened, "open twice"
        opened.add(partition)
        self.partition = partition
        self._opened = opened

    def close(self) -> None:
        self._opened.remove(self.partition)


class World:
    """ConsumerThread and restorer as their threads appear from the loop: at once, but for their callbacks."""

    def __init__(self) -> None:
        self.opened: set[int] = set()
        self.generation: int | None = None
        self.running: dict[int, Store] = {}
        self.held: dict[int, Store] = {}
        self.leaving: dict[int, Store] = {}
        self.followed: dict[int, Store] = {}
        self.wanted: dict[int, int | None] = {}
        self.callbacks: list[Coroutine[Any, Any, None]] = []
        lease = Lease(6_000, 2_000, clock=lambda: 0.0)
        lease.extend(0.0)
        self.member = "m1"
        self.unbroken = False
        self.ownership = Ownership(
            cast(ConsumerThread, self), cast(Restorer, self), lease, lambda: self.member, lambda: None
        )

    # --- as the owner ---

    def revoke_all(self, _timeout_s: float) -> Future[None]:
        self.held.update(self.running)
        self.running.clear()
        return done(None)

    def hand_over(self, partitions: set[int], _for_s: float) -> Future[None]:
        for partition in partitions & self.held.keys():
            self.leaving[partition] = self.held.pop(partition)
        return done(None)

    def resume(self, generation: int, partitions: set[int]) -> Future[set[int]]:
        assert self.unbroken or not partitions, "somebody else may have owned them meanwhile"
        resumed = partitions & self.held.keys() if generation == self.generation else set()
        for partition in resumed:
            self.running[partition] = self.held.pop(partition)
        return done(resumed)

    def start_partition(self, restored: Restored) -> Future[bool]:
        if restored.generation != self.generation:
            return done(False)
        store = cast(Store, restored.store)
        assert store.partition not in {**self.running, **self.held, **self.leaving}
        self.running[store.partition] = store
        return done(True)

    def drop(self, judged: dict[int, Store]) -> None:
        stores = [cast(PartitionStore, store) for store in judged.values()]
        judged.clear()
        if stores:
            self.callbacks.append(self.ownership.dropped(stores))

    def lapse(self) -> None:
        self.drop(self.running)
        self.drop(self.held)

    def new_owners_begin(self) -> None:
        self.drop(self.leaving)

    def has_peers(self) -> Future[bool]:
        self.callbacks_soon()
        return done(True)

    def callbacks_soon(self) -> None:
        """What is left by then is taken over by others at once."""
        loop = asyncio.get_running_loop()
        loop.call_later(0.001, self.new_owners_begin)
        loop.call_later(0.002, lambda: [loop.create_task(callback) for callback in self.callbacks])

    def stop(self, timeout_s: float | None = None) -> list[Any]:
        """The owner's with a timeout, the restorer's without."""
        if timeout_s is not None:
            return [*self.running.values(), *self.held.values(), *self.leaving.values()]
        for store in self.followed.values():
            store.close()
        return []

    # --- as the restorer, and release() as both ---

    def open(self, partition: int) -> None:
        self.follow(Store(partition, self.opened))

    def follow(self, store: Store) -> None:
        assert store.partition not in self.followed
        self.followed[store.partition] = store
        self.wanted[store.partition] = None

    def activate(self, generation: int | None, partition: int) -> None:
        if partition in self.followed:
            self.wanted[partition] = generation

    def release(self, partition: int) -> Future[Any]:
        for held in (self.held, self.leaving, self.followed):
            if partition in held:
                return done(held.pop(partition))
        return done(None)

    def watch(self, partitions: set[int]) -> None:
        assert partitions <= set(PARTITIONS)

    def catch_up(self, partition: int) -> None:
        generation = self.wanted.get(partition)
        if partition in self.followed and generation is not None:
            store = cast(PartitionStore, self.followed.pop(partition))
            restored = Restored(generation, store, "topic", "updates", {}, 0)
            self.callbacks.append(self.ownership.restored(restored))


sets = st.sets(st.sampled_from(PARTITIONS))
actions = st.lists(
    st.one_of(
        st.tuples(st.just("revoke")),
        st.tuples(st.just("assign"), sets, sets, st.sampled_from([1, 1, 2])),
        st.tuples(st.just("rejoin")),
        st.tuples(st.just("catch_up"), st.sampled_from(PARTITIONS)),
        st.tuples(st.just("lapse")),
        st.tuples(st.just("new_owners_begin")),
        st.tuples(st.just("call_back"), st.integers(0, 5)),
        st.tuples(st.just("turn")),
        st.tuples(st.just("settle")),
    ),
    max_size=30,
)


async def settle(world: World, tasks: list[asyncio.Task[None]]) -> None:
    """Let everything that is under way come to its end."""
    for _ in range(10):
        tasks += [asyncio.create_task(callback) for callback in world.callbacks]
        world.callbacks.clear()
        world.new_owners_begin()
        await asyncio.gather(*tasks)
        for partition in PARTITIONS:
            world.catch_up(partition)


async def play(script: list[tuple[Any, ...]], racing: int) -> None:
    world = World()
    tasks: list[asyncio.Task[None]] = []
    revoked, generation, member = True, 0, ""
    actives: set[int] = set()
    standbys: set[int] = set()
    for name, *args in [*script, ("revoke",), ("assign", {0, 1}, {2}, 1)]:
        if name == "revoke" and not revoked:
            await world.ownership.revoked()
            revoked = True
        elif name == "assign" and revoked:
            generation += args[2]
            world.unbroken = args[2] == 1 and world.member == member
            member = world.member
            actives, standbys = args[0], args[1] - args[0]
            # As with Faust: nothing else of the group happens until it returns; callbacks do.
            await world.ownership.assigned(generation, actives, standbys)
            revoked = False
        elif name == "rejoin":
            world.member += "'"
        elif name == "catch_up":
            world.catch_up(*args)
        elif name == "lapse":
            world.lapse()
        elif name == "new_owners_begin":
            world.new_owners_begin()
        elif name == "call_back" and world.callbacks:
            tasks.append(asyncio.create_task(world.callbacks.pop(args[0] % len(world.callbacks))))
        elif name == "turn":
            await asyncio.sleep(0)
        elif name == "settle":
            await settle(world, tasks)
    await settle(world, tasks)
    assert set(world.running) == actives
    assert set(world.followed) == standbys
    assert not world.held
    assert not world.leaving
    assert world.opened == actives | standbys

    if racing:
        await world.ownership.revoked()
        generation, world.unbroken = generation + 1, world.member == member
        last = [
            world.ownership.assigned(generation, actives | standbys, set()),
            world.ownership.let_go(),
        ]
        await asyncio.gather(*last[::racing])
    else:
        await world.ownership.let_go()
    assert not world.running, "what is written now is written without being a member"
    await world.ownership.stop()
    assert not world.opened


@given(actions, st.sampled_from([0, 1, -1]))
def test_at_rest_every_partition_is_where_it_belongs_and_after_a_stop_closed(
    script: list[tuple[Any, ...]], racing: int
) -> None:
    asyncio.run(play(script, racing))
