"""After any sequence of events, each partition is where the assignment demands it, and open once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stoplog_worker.assignment.takeover import AssignmentCoordinator, Holder
from stoplog_worker.consumer.consumer_thread import ConsumerThread
from stoplog_worker.lease import Lease
from stoplog_worker.restore.restorer import Restored, Restorer
from stoplog_worker.state.store import PartitionStore

from tests.support.phase_table import edges_of

PARTITIONS = range(4)
T = TypeVar("T")


def done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future


class Store:
    """Tables that cannot be open twice, like RocksDB's."""

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
        self.coordinator = AssignmentCoordinator(
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
        assert self.unbroken or not partitions, "another worker may have owned them meanwhile"
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
            self.callbacks.append(self.coordinator.on_dropped(stores))

    def lapse(self) -> None:
        self.drop(self.running)
        self.drop(self.held)

    def new_owners_begin(self) -> None:
        self.drop(self.leaving)

    def has_peers(self) -> Future[bool]:
        self.callbacks_soon()
        return done(True)

    def callbacks_soon(self) -> None:
        """Let other workers take over the remaining partitions."""
        loop = asyncio.get_running_loop()
        loop.call_later(0.001, self.new_owners_begin)
        loop.call_later(0.002, lambda: [loop.create_task(callback) for callback in self.callbacks])

    def stop(self, timeout_s: float | None = None) -> list[Any]:
        """Stop the owner if there is a timeout, else the restorer."""
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
            self.callbacks.append(self.coordinator.on_restored(restored))


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
    """Let everything in progress finish."""
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
            await world.coordinator.on_revoked()
            revoked = True
        elif name == "assign" and revoked:
            generation += args[2]
            world.unbroken = args[2] == 1 and world.member == member
            member = world.member
            actives, standbys = args[0], args[1] - args[0]
            # As with Faust, no other event of the group happens until it returns. Callbacks do.
            await world.coordinator.on_assigned(generation, actives, standbys)
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
        await world.coordinator.on_revoked()
        generation, world.unbroken = generation + 1, world.member == member
        last = [
            world.coordinator.on_assigned(generation, actives | standbys, set()),
            world.coordinator.prepare_to_leave(),
        ]
        await asyncio.gather(*last[::racing])
    else:
        await world.coordinator.prepare_to_leave()
    assert not world.running, "anything written now would be written without being a member"
    await world.coordinator.stop()
    assert not world.opened


@given(actions, st.sampled_from([0, 1, -1]))
def test_any_sequence_of_events_places_every_partition_and_stop_closes_all(
    script: list[tuple[Any, ...]], racing: int
) -> None:
    asyncio.run(play(script, racing))


# --- who holds a store ---


@pytest.fixture
async def world() -> World:
    """A world whose first assignment is over."""
    world = World()
    await assign(world, 1, set(), set())
    return world


async def assign(world: World, generation: int, actives: set[int], standbys: set[int]) -> None:
    await world.coordinator.on_revoked()
    world.unbroken = True
    await world.coordinator.on_assigned(generation, actives, standbys)


async def call_back(world: World) -> None:
    """Run the callbacks of owner and restorer."""
    while world.callbacks:
        await world.callbacks.pop(0)


async def own(world: World) -> None:
    """Have the owner decide partition 0, in generation 2."""
    await assign(world, 2, {0}, set())
    world.catch_up(0)
    await call_back(world)
    assert world.coordinator.holder(0) is Holder.OWNER


@pytest.mark.parametrize("standby", [False, True])
async def test_assigned_closed_partition_goes_to_restorer(world: World, standby: bool) -> None:
    assert world.coordinator.holder(0) is Holder.CLOSED
    await assign(world, 2, set() if standby else {0}, {0} if standby else set())
    assert world.coordinator.holder(0) is Holder.RESTORER


async def test_restored_partition_goes_to_owner(world: World) -> None:
    await own(world)


async def test_unassigned_partition_goes_from_restorer_through_coordinator_and_is_closed(
    world: World,
) -> None:
    await assign(world, 2, {0}, set())
    await assign(world, 3, set(), set())
    assert world.coordinator.holder(0) is Holder.CLOSED
    assert not world.opened


async def test_partition_restored_for_earlier_generation_stays_with_coordinator(world: World) -> None:
    await assign(world, 2, {0}, set())
    world.catch_up(0)
    await world.coordinator.on_revoked()
    await call_back(world)
    assert world.coordinator.holder(0) is Holder.COORDINATOR
    await world.coordinator.on_assigned(3, {0}, set())
    assert world.coordinator.holder(0) is Holder.RESTORER


async def test_partition_owned_in_broken_generation_goes_back_to_restorer(world: World) -> None:
    await own(world)
    world.member += "'"
    await world.coordinator.on_revoked()
    world.unbroken = False
    await world.coordinator.on_assigned(3, {0}, set())
    assert world.coordinator.holder(0) is Holder.RESTORER


async def test_dropped_partition_is_placed_only_after_the_rebalance(world: World) -> None:
    await own(world)
    world.lapse()
    await world.coordinator.on_revoked()
    await call_back(world)
    assert world.coordinator.holder(0) is Holder.COORDINATOR
    await world.coordinator.on_assigned(3, set(), set())
    assert world.coordinator.holder(0) is Holder.CLOSED


async def test_partition_handed_over_is_closed_when_its_new_owner_begins(world: World) -> None:
    await own(world)
    await assign(world, 3, set(), set())
    assert world.coordinator.holder(0) is Holder.OWNER
    world.new_owners_begin()
    await call_back(world)
    assert world.coordinator.holder(0) is Holder.CLOSED


def test_holder_table_states_exactly_the_edges_of_the_code() -> None:
    assert edges_of(Holder) == {
        (Holder.CLOSED, Holder.RESTORER),
        (Holder.RESTORER, Holder.OWNER),
        (Holder.RESTORER, Holder.COORDINATOR),
        (Holder.OWNER, Holder.COORDINATOR),
        (Holder.COORDINATOR, Holder.RESTORER),
        (Holder.COORDINATOR, Holder.CLOSED),
    }
