"""Every sequence of a few events about holds: no interval admits more than the limit.

The fold and the lease caches are the real ones. The scope is small: one client with a limit of 3 to 6, two
processes with leases, one caller with a reservation, and seven events. States that differ only in how they
were reached are explored once. Before each record, the client's state is loaded from its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from stoplog_worker.algorithm import holds
from stoplog_worker.algorithm.fold import Folded, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.state.store import COUNTERS, POLICIES

from stoplog.client import lease_cache, lease_table
from stoplog.client.metrics import Metrics
from stoplog.policy import Limit, Policy, parse_policy
from stoplog.wire.checks import (
    Batch,
    Check,
    encode_batch,
    encode_settlements,
    encode_update,
)
from stoplog.wire.holds import (
    RESERVATION,
    SETTLED_NOW,
    Ask,
    HoldRow,
    Settlement,
    SettlementBatch,
    SettlementRow,
)
from stoplog.wire.limit_updates import Update, enabling_update
from stoplog.wire.replies import Decision, HeldDecision
from tests.support.lease_holder import LeaseHolder, SentBatch
from tests.support.memory_store import MemoryStore

EVENTS = {"renewals": 6}
"""Events of a scope; 7 by default."""
WINDOW_MS = 60_000
TTL_MS = 3_000
START = 1_764_000_000_000
CLIENT = "a"
FAULT = fault_finder(0, 1)
RESERVED = (1, 99, 0)
"""Id of the reservation, which the process of holder A asked for."""
METRICS = Metrics()
ENABLED = encode_update(enabling_update())


class State(NamedTuple):
    """All that a further event depends on.

    Attributes:
        now_ms: The time, which all clocks show.
        limit: The limit in force, for a minute.
        hourly: Whether there is another limit, for an hour, that is higher by 2.
        version: Version of the last update.
        counters: The stored states.
        policies: The stored policies.
        holders: The frozen processes, each with a batch that was sent and has not arrived.
        last: The record that arrived last.
        admitted: Times and units of the admissions since the last update, of the last window.
        reserved: When the reservation was granted, and the units that count for it; ``None`` before.
    """

    now_ms: int
    limit: int
    hourly: bool
    version: int
    counters: tuple[tuple[bytes, bytes], ...]
    policies: tuple[tuple[bytes, bytes], ...]
    holders: tuple[bytes, ...]
    last: bytes | None
    admitted: tuple[tuple[int, int], ...]
    reserved: tuple[int, int] | None


class World:
    """One state, unpacked, to which one event is applied."""

    def __init__(self, state: State) -> None:
        self.now_ms, self.limit, self.version = state.now_ms, state.limit, state.version
        self.hourly = state.hourly
        self.counters, self.policies = dict(state.counters), dict(state.policies)
        self.last, self.reserved = state.last, state.reserved
        self.admitted = list(state.admitted)
        self.frozen = list(state.holders)
        self.thawed: dict[int, LeaseHolder] = {}
        self.late: dict[int, SentBatch | None] = {}
        """Batches that were sent and have not arrived, by their senders, which are thawed."""

    def holder(self, index: int) -> LeaseHolder:
        """Return a process. The others stay frozen, which saves half of the time."""
        found = self.thawed.get(index)
        if found is None:
            found = LeaseHolder(index + 1, TTL_MS, lambda: self.now_ms / 1_000, METRICS)
            self.late[index] = found.thaw(self.frozen[index]) if self.frozen[index] else None
            found.prove()
            self.thawed[index] = found
        return found

    def packed(self, *, repeatable: bool) -> State:
        """Return the state, without what no further event depends on."""
        recent = tuple(sorted(pair for pair in self.admitted if pair[0] >= self.now_ms - WINDOW_MS))
        return State(
            self.now_ms,
            self.limit,
            self.hourly,
            self.version,
            tuple(sorted(self.counters.items())),
            tuple(sorted(self.policies.items())),
            tuple(
                self.thawed[index].frozen(self.late[index]) if index in self.thawed else frozen
                for index, frozen in enumerate(self.frozen)
            ),
            self.last if repeatable else None,
            recent,
            self.reserved,
        )

    # --- the log ---

    def append(self, value: bytes) -> Folded:
        """Fold a record. Positions are left out of the stored values, so that states can be equal."""
        store = MemoryStore()
        store.write(COUNTERS, list(self.counters.items()))
        store.write(POLICIES, list(self.policies.items()))
        clock_ms = self.now_ms
        marker = Marker(1, clock_ms, clock_ms, self.version - 1, "", parse_policy("5/minute"))
        ledger = Ledger(store, marker)
        found = fold(ledger, 1, clock_ms, value, FAULT)
        assert not found.refused, found.refused
        _, entries = ledger.take_dirty()
        for key, stored in entries.counters:
            self.counters[key] = stored[:1] + bytes(8) + stored[9:]
        self.policies.update(entries.policies)
        return found

    def arrive(self, index: int, batch: SentBatch, *, replied: bool) -> None:
        """Fold a batch of one check, and have its sender take the reply or give up."""
        self.last = batch.value
        [answer] = self.append(batch.value).answers
        assert isinstance(answer, Decision)
        if answer.allowed:
            self.admit(batch.checks[0].cost)
        if not replied:
            self.holder(index).lost(batch)
            return
        [allowed] = self.holder(index).answered(batch, [answer], self.version)
        if allowed and not answer.allowed:
            self.admit(batch.checks[0].cost)

    def admit(self, cost: int) -> None:
        self.admitted.append((self.now_ms, cost))

    # --- events; one that is not possible does nothing ---

    def ask(self, index: int, cost: int = 1, *, replied: bool = True) -> None:
        """A caller asks a process, whose cache answers or asks the log."""
        check = Check(CLIENT, cost)
        if self.holder(index).admit(check):
            self.admit(cost)
        else:
            self.arrive(index, self.holder(index).send([check]), replied=replied)

    def use_all(self, index: int) -> None:
        """Callers ask a process for as long as its cache answers."""
        while self.holder(index).rescue(Check(CLIENT)):
            self.admit(1)

    def ask_late(self, index: int) -> None:
        """As :meth:`ask`, but the process gives up before its record arrives."""
        holder, check = self.holder(index), Check(CLIENT)
        if self.late[index] is None and not holder.admit(check):
            batch = self.late[index] = holder.send([check])
            holder.lost(batch)

    def late_arrives(self, index: int) -> None:
        self.holder(index)
        batch, self.late[index] = self.late[index], None
        if batch is not None:
            self.arrive(index, batch, replied=False)

    def duplicate(self) -> None:
        if self.last is not None:
            self.append(self.last)

    def settle_leases(self, index: int, *, lost: bool = False) -> None:
        for value in self.holder(index).settlements():
            if not lost:
                self.append(value)
                self.last = value

    def check(self, times: int = 1) -> None:
        value = encode_batch(Batch(-1, 9, 1, [Check(CLIENT)] * times))
        for answer in self.append(value).answers:
            assert isinstance(answer, Decision)
            if answer.allowed:
                self.admit(1)

    def reserve(self) -> None:
        if self.reserved is None:
            row = HoldRow(0, Ask(RESERVATION, RESERVED, 0, 0, TTL_MS))
            value = encode_batch(Batch(0, 1, 1, [Check(CLIENT, 2)], [row]))
            [answer] = self.append(value).answers
            self.last = value
            assert isinstance(answer, HeldDecision)
            if answer.allowed:
                self.reserved = self.now_ms, 2

    def settle_reservation(self) -> None:
        if self.reserved is not None:
            rows = [SettlementRow(CLIENT, "", (Settlement(RESERVED, 1),))]
            found = self.append(encode_settlements(SettlementBatch(-1, 99, 1, rows)))
            if found.settled == [(SETTLED_NOW,)]:
                self.reserved = self.reserved[0], 1

    def wait(self, by_ms: int) -> None:
        self.now_ms += by_ms

    def change(self, limit: int) -> None:
        """Change the limit, or reset the client if it stays the same.

        A lease is used only with proof that no update came. That proof may be a little old, so a reset must
        be strict even for a process that has not heard of it.
        """
        self.version += 1
        if limit != self.limit:
            for index in range(len(self.frozen)):
                self.holder(index).hear("client", CLIENT, self.version)
        longer = (Limit(limit + 2, 60 * WINDOW_MS),) if self.hourly else ()
        policy: Policy | None = Policy((*longer, Limit(limit, WINDOW_MS)))
        kind = "client"
        if limit == self.limit:
            kind, policy = "reset", None
        self.append(encode_update(Update(self.version, kind, CLIENT, "", policy)))
        self.limit = limit
        self.admitted.clear()
        if self.reserved is not None:
            self.reserved = 0, 0

    def verify(self) -> None:
        """No interval that ends now admits more than the limit."""
        counted = self.admitted if self.reserved is None else [*self.admitted, self.reserved]
        spent = sum(units for at_ms, units in counted if at_ms >= self.now_ms - WINDOW_MS)
        assert spent <= self.limit, f"{spent} admitted of {self.limit}"


Event = tuple[str, Callable[[World], None]]
ASK_A: Event = ("A is asked", lambda world: world.ask(0))
BIG_A: Event = ("A is asked for 2", lambda world: world.ask(0, 2))
ALL_A: Event = ("A uses its permits", lambda world: world.use_all(0))
ASK_B: Event = ("B is asked", lambda world: world.ask(1))
LOSE: Event = ("A is asked, and the reply is lost", lambda world: world.ask(0, replied=False))
LATE: Event = ("A is asked, and gives up before its record arrives", lambda world: world.ask_late(0))
ARRIVE: Event = ("the late record arrives", lambda world: world.late_arrives(0))
AGAIN: Event = ("the last record arrives again", lambda world: world.duplicate())
SETTLE_A: Event = ("A settles", lambda world: world.settle_leases(0))
LOSE_S: Event = ("A settles, and the record is lost", lambda world: world.settle_leases(0, lost=True))
CHECK: Event = ("a check", lambda world: world.check())
CHECKS: Event = ("checks, as many as the limit", lambda world: world.check(world.limit))
RESERVE: Event = ("a reservation", lambda world: world.reserve())
SETTLE: Event = ("the reservation is settled", lambda world: world.settle_reservation())
PART: Event = ("half a lease passes", lambda world: world.wait(TTL_MS // 2))
OVER: Event = ("a lease and a half passes", lambda world: world.wait(TTL_MS * 3 // 2))
EXPIRE: Event = ("a lease ends", lambda world: world.wait(TTL_MS))
LEAVE: Event = ("almost a window passes", lambda world: world.wait(WINDOW_MS - 100))
LOWER: Event = ("the limit is 3", lambda world: world.change(3))
RESET: Event = ("a reset", lambda world: world.change(world.limit))

SCOPES = {
    "late and repeated records": (5, [ASK_A, LATE, ARRIVE, AGAIN, BIG_A, SETTLE_A, CHECK]),
    "two processes": (6, [ASK_A, LOSE, BIG_A, SETTLE_A, LOSE_S, ASK_B, CHECK]),
    "renewals": (6, [ASK_A, LOSE, LATE, ARRIVE, BIG_A, PART, CHECK]),
    "two limits": (3, [ASK_A, ASK_B, BIG_A, CHECK, EXPIRE]),
    "ends": (4, [ASK_A, ALL_A, SETTLE_A, LOSE_S, OVER, LEAVE, CHECKS]),
    "parts of leases": (4, [ASK_A, ALL_A, LOSE, PART, EXPIRE, LEAVE, CHECKS]),
    "reservations": (4, [RESERVE, SETTLE, AGAIN, ASK_A, SETTLE_A, EXPIRE, CHECK]),
    "updates": (5, [ASK_A, SETTLE_A, LOWER, RESET, RESERVE, EXPIRE, CHECK]),
}
"""Limit and events of each scope."""


EAGER = {"MIN_CHECKS": 1, "MIN_CHECKS_AGAIN": 0, "MIN_WANT": 3, "SURPLUS": 0, "RETRY_S": 0, "MAX_RETRY_S": 0}
"""Constants of the lease cache that are about its economy."""


def explore(
    limit: int, events: list[Event], depth: int, *, hourly: bool = False
) -> Iterator[tuple[list[str], int]]:
    """Apply every sequence of *depth* events; yield those that break the guarantee, and count the states."""
    world = World(State(START, limit, hourly, 0, (), (), (b"", b""), None, (), None))
    world.append(ENABLED)
    world.change(limit + 1)
    world.change(limit)
    repeatable = AGAIN in events
    level: dict[State, list[str]] = {world.packed(repeatable=repeatable): []}
    seen = 1
    for _ in range(depth):
        following: dict[State, list[str]] = {}
        for state, path in level.items():
            for name, event in events:
                world = World(state)
                event(world)
                try:
                    world.verify()
                except AssertionError as broken:
                    yield [*path, name, str(broken)], seen
                    return
                after = world.packed(repeatable=repeatable)
                if after not in following and after != state:
                    following[after] = [*path, name]
        level = following
        seen += len(level)
    yield [], seen


@pytest.mark.parametrize("scope", SCOPES)
def test_every_sequence_of_events_keeps_the_limit(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in EAGER.items():
        monkeypatch.setattr(lease_cache, name, value)
    monkeypatch.setattr(lease_table, "LOW_PERMITS", 2)
    monkeypatch.setattr(holds, "MIN_LEASE", 1)
    monkeypatch.setattr(holds, "SHARE", 1)
    limit, events = SCOPES[scope]
    [(broken, seen)] = explore(limit, events, EVENTS.get(scope, 7), hourly=scope == "two limits")
    assert not broken, " -> ".join(broken)
    assert seen > 500
