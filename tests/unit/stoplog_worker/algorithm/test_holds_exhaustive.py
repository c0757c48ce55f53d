"""Every sequence of a few events about holds, over the real fold: no interval admits more than the limit.

The scope is small: one client with a limit of 3 to 5, two holders of leases, one caller with a reservation,
and seven events. States that differ only in how they were reached are explored once. Before each record, the
client's state is loaded from its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from stoplog_worker.algorithm import holds
from stoplog_worker.algorithm.fold import Folded, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.state.store import COUNTERS, POLICIES

from stoplog.policy import UNLIMITED, Limit, Policy, parse_policy
from stoplog.wire.checks import (
    Batch,
    Check,
    encode_batch,
    encode_settlements,
    encode_update,
)
from stoplog.wire.holds import RESERVATION, Ask, HoldRow, Settlement, SettlementBatch, SettlementRow
from stoplog.wire.limit_updates import ENABLE_HOLDS, Update
from stoplog.wire.replies import Decision, HeldDecision
from tests.support.holder import Holder, Lease, SentAsk
from tests.support.memory_store import MemoryStore

EVENTS = 7
WINDOW_MS = 60_000
TTL_MS = 3_000
START = 1_764_000_000_000
CLIENT = "a"
FAULT = fault_finder(0, 1)
RESERVED = (1, 99, 0)
"""Id of the reservation, which the process of holder A asked for."""
ENABLED = encode_update(Update(0, ENABLE_HOLDS.kind, ENABLE_HOLDS.id, "", UNLIMITED))


class Sent(NamedTuple):
    """A record on its way to the log. ``holder`` and ``ask`` are those of an ask."""

    value: bytes
    holder: int = -1
    ask: SentAsk | None = None


class State(NamedTuple):
    """All that a further event depends on.

    Attributes:
        now_ms: The time, which all clocks show.
        limit: The limit in force, for a minute.
        hourly: Whether there is another limit, for an hour, that is higher by 2.
        version: Version of the last update.
        counters: The stored states.
        policies: The stored policies.
        holders: The holders' numbers and leases.
        late: A record that was sent and has not arrived.
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
    holders: tuple[tuple[int, tuple[tuple[Any, ...], ...]], ...]
    late: Sent | None
    last: Sent | None
    admitted: tuple[tuple[int, int], ...]
    reserved: tuple[int, int] | None


class World:
    """One state, unpacked, to which one event is applied."""

    def __init__(self, state: State) -> None:
        self.now_ms, self.limit, self.version = state.now_ms, state.limit, state.version
        self.hourly = state.hourly
        self.counters, self.policies = dict(state.counters), dict(state.policies)
        self.late, self.last, self.reserved = state.late, state.last, state.reserved
        self.admitted = list(state.admitted)
        self.holders = []
        for incarnation, (number, leases) in enumerate(state.holders, 1):
            holder = Holder(incarnation, lambda: self.now_ms)
            holder.number = number
            holder.leases = {fields[0]: Lease(*fields) for fields in leases}
            self.holders.append(holder)

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
                (
                    holder.number,
                    tuple(
                        (x.id, x.permits, x.until, x.used, x.ended)
                        for x in holder.leases.values()
                        if x.used or not x.ended
                    ),
                )
                for holder in self.holders
            ),
            self.late,
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

    def arrive(self, sent: Sent, *, replied: bool = True) -> None:
        self.last = sent
        found = self.append(sent.value)
        if sent.ask is not None and replied:
            [answer] = found.answers
            assert isinstance(answer, HeldDecision)
            self.holders[sent.holder].answered(sent.ask, answer.grant)

    def asked(self, index: int) -> Sent:
        ask, settlements = self.holders[index].ask(2, TTL_MS)
        batch = Batch(0, index + 1, 1, [Check(CLIENT, 0)], [HoldRow(0, ask.ask, settlements)])
        return Sent(encode_batch(batch), index, ask)

    # --- events; one that is not possible does nothing ---

    def ask(self, index: int) -> None:
        self.arrive(self.asked(index))

    def ask_and_lose_reply(self, index: int) -> None:
        self.arrive(self.asked(index), replied=False)

    def ask_late(self, index: int) -> None:
        if self.late is None:
            self.late = self.asked(index)

    def late_arrives(self) -> None:
        if self.late is not None:
            sent, self.late = self.late, None
            self.arrive(sent)

    def duplicate(self) -> None:
        if self.last is not None:
            self.arrive(self.last, replied=False)

    def use(self, index: int) -> None:
        while self.holders[index].admit():
            self.admitted.append((self.now_ms, 1))

    def use_one(self, index: int) -> None:
        if self.holders[index].admit():
            self.admitted.append((self.now_ms, 1))

    def give_back(self, index: int) -> None:
        settlements = self.holders[index].give_back()
        if settlements:
            rows = [SettlementRow(CLIENT, "", settlements)]
            self.arrive(Sent(encode_settlements(SettlementBatch(-1, index + 1, 1, rows))))

    def check(self) -> None:
        [answer] = self.append(encode_batch(Batch(-1, 9, 1, [Check(CLIENT)]))).answers
        assert isinstance(answer, Decision)
        if answer.allowed:
            self.admitted.append((self.now_ms, 1))

    def reserve(self) -> None:
        if self.reserved is None:
            row = HoldRow(0, Ask(RESERVATION, RESERVED, 0, 0, TTL_MS))
            sent = Sent(encode_batch(Batch(0, 1, 1, [Check(CLIENT, 2)], [row])))
            [answer] = self.append(sent.value).answers
            self.last = sent
            assert isinstance(answer, HeldDecision)
            if answer.allowed:
                self.reserved = self.now_ms, 2

    def settle_reservation(self) -> None:
        if self.reserved is not None:
            rows = [SettlementRow(CLIENT, "", (Settlement(RESERVED, 1),))]
            found = self.append(encode_settlements(SettlementBatch(-1, 99, 1, rows)))
            if found.settled == [(True,)]:
                self.reserved = self.reserved[0], 1

    def wait(self, by_ms: int) -> None:
        self.now_ms += by_ms

    def change(self, limit: int) -> None:
        """Change the limit, or reset the client if it stays the same.

        A lease is used only with proof that no update came. That proof may be a little old, so a reset must
        be strict even for a holder that has not heard of it.
        """
        if limit != self.limit:
            for holder in self.holders:
                holder.give_back()
        self.version += 1
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
ASK_A: Event = ("A asks", lambda world: world.ask(0))
ASK_B: Event = ("B asks", lambda world: world.ask(1))
LOSE: Event = ("A asks, and the reply is lost", lambda world: world.ask_and_lose_reply(0))
LATE: Event = ("A asks, and the record is late", lambda world: world.ask_late(0))
ARRIVE: Event = ("the late record arrives", lambda world: world.late_arrives())
AGAIN: Event = ("the last record arrives again", lambda world: world.duplicate())
USE_A: Event = ("A uses its permits", lambda world: world.use(0))
USE_B: Event = ("B uses its permits", lambda world: world.use(1))
ONE_A: Event = ("A uses a permit", lambda world: world.use_one(0))
BACK_A: Event = ("A gives back", lambda world: world.give_back(0))
CHECK: Event = ("a check", lambda world: world.check())
RESERVE: Event = ("a reservation", lambda world: world.reserve())
SETTLE: Event = ("the reservation is settled", lambda world: world.settle_reservation())
PART: Event = ("half a lease passes", lambda world: world.wait(TTL_MS // 2))
EXPIRE: Event = ("a lease ends", lambda world: world.wait(TTL_MS))
LEAVE: Event = ("almost a window passes", lambda world: world.wait(WINDOW_MS - 1_000))
LOWER: Event = ("the limit is 3", lambda world: world.change(3))
RESET: Event = ("a reset", lambda world: world.change(world.limit))

SCOPES = {
    "late and repeated asks": (4, [ASK_A, LATE, ARRIVE, AGAIN, USE_A, BACK_A, CHECK]),
    "two holders and lost replies": (5, [ASK_A, LOSE, USE_A, BACK_A, ASK_B, USE_B, CHECK]),
    "parts": (4, [ASK_A, ONE_A, CHECK, LATE, ARRIVE]),
    "two limits": (3, [ASK_A, ASK_B, USE_A, USE_B, CHECK, EXPIRE]),
    "ends": (3, [ASK_A, USE_A, BACK_A, PART, EXPIRE, LEAVE, CHECK]),
    "reservations": (4, [RESERVE, SETTLE, AGAIN, ASK_A, USE_A, EXPIRE, CHECK]),
    "updates": (5, [ASK_A, USE_A, LOWER, RESET, RESERVE, EXPIRE, CHECK]),
}
"""Limit and events of each scope."""


def explore(
    limit: int, events: list[Event], depth: int, *, hourly: bool = False
) -> Iterator[tuple[list[str], int]]:
    """Apply every sequence of *depth* events; yield those that break the guarantee, and count the states."""
    world = World(State(START, limit, hourly, 0, (), (), ((0, ()), (0, ())), None, None, (), None))
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
    monkeypatch.setattr(holds, "MIN_LEASE", 1)
    monkeypatch.setattr(holds, "SHARE", 1)
    limit, events = SCOPES[scope]
    [(broken, seen)] = explore(limit, events, EVENTS, hourly=scope == "two limits")
    assert not broken, " -> ".join(broken)
    assert seen > 500
