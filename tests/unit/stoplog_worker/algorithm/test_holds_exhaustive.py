"""Every sequence of a few events about holds: no interval admits more than the limit.

The fold and the lease caches are the real ones. The scope is small: one client with a limit of 3 to 6, two
processes with leases, one caller with a reservation, and sequences of seven events. States that differ only
in how they were reached are explored once. Before each record, the client's state is loaded from its bytes.

A renewal that is granted while permits of the lease before are left needs a limit of 6.

A changed limit keeps what was admitted before: each admission must be within the limit then in force, with
all admissions of the last window. Only a reset drops what was admitted.

:mod:`tests.support.hold_mutations` lists errors that these scopes find.
"""

from __future__ import annotations

from collections.abc import Callable
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

LENGTH = 7
"""Events of a sequence."""
WINDOW_MS = 60_000
TTL_MS = 3_000
SHORT_MS = 10_000
START = 1_764_000_000_000
BEFORE_TICK = START + 998
"""A lease that is granted then ends 2 ms before a tick of its window does."""
SLOW = 0.98
"""Rate of a clock that is 1 % slow, measured by one that is 1 % fast."""
CONFIRMED_MS = 205
"""Milliseconds after which a changed limit is confirmed: proofs are valid for 200."""
CLIENT = "a"
FAULT = fault_finder(0, 1)
RESERVED = (1, 99, 0)
"""Id of the reservation, which the process of holder A asked for."""
METRICS = Metrics()
ENABLED = encode_update(enabling_update())


class State(NamedTuple):
    """All that a further event depends on.

    Attributes:
        now_ms: Partition time.
        slow: Whether the clocks of the processes are slow.
        limit: The limit in force.
        window_ms: Its window.
        hourly: Whether there is another limit, for an hour, that is higher by 2.
        version: Version of the last update.
        counters: The stored states.
        policies: The stored policies.
        holders: The frozen processes, each with a batch of which it has not read the reply.
        unread: Version of the update that process A has not read; 0 if it has read all.
        last: The record that arrived last.
        admitted: Times and units of the admissions since the last reset, of the longest window.
        reserved: When the reservation was granted, and the units that count for it; ``None`` before.
    """

    now_ms: int
    slow: bool
    limit: int
    window_ms: int
    hourly: bool
    version: int
    counters: tuple[tuple[bytes, bytes], ...]
    policies: tuple[tuple[bytes, bytes], ...]
    holders: tuple[bytes, ...]
    unread: int
    last: bytes | None
    admitted: tuple[tuple[int, int], ...]
    reserved: tuple[int, int] | None


class Late(NamedTuple):
    """A batch of which the sender has not read the reply.

    Attributes:
        batch: The batch.
        answers: The answers of the log, whose reply is on its way; ``None`` if the record is on its way.
        applied: The updates that the log had applied.
    """

    batch: SentBatch
    answers: list[Decision] | None = None
    applied: int = 0


class World:
    """One state, unpacked, to which one event is applied."""

    def __init__(self, state: State) -> None:
        self.now_ms, self.limit, self.version = state.now_ms, state.limit, state.version
        self.slow, self.window_ms, self.hourly = state.slow, state.window_ms, state.hourly
        self.unread = state.unread
        self.counters, self.policies = dict(state.counters), dict(state.policies)
        self.last, self.reserved = state.last, state.reserved
        self.admitted = list(state.admitted)
        self.frozen = list(state.holders)
        self.thawed: dict[int, LeaseHolder] = {}
        self.late: dict[int, Late | None] = {}
        """Batches of which the reply was not read, by their senders, which are thawed."""
        self.has_admitted = False
        """Whether the event has admitted anything."""

    def holder(self, index: int) -> LeaseHolder:
        """Return a process. The others stay frozen, which saves half of the time."""
        found = self.thawed.get(index)
        if found is None:
            found = LeaseHolder(index + 1, TTL_MS, self.clock, METRICS)
            self.late[index] = found.thaw(self.frozen[index]) if self.frozen[index] else None
            if index or not self.unread:
                found.prove()
            self.thawed[index] = found
        return found

    def clock(self) -> float:
        """Return the time of the processes, in seconds."""
        return (START + (self.now_ms - START) * (SLOW if self.slow else 1)) / 1_000

    def packed(self, *, repeatable: bool) -> State:
        """Return the state, without what no further event depends on."""
        since_ms = self.now_ms - WINDOW_MS * (60 if self.hourly else 1)
        recent = tuple(sorted(pair for pair in self.admitted if pair[0] >= since_ms))
        return State(
            self.now_ms,
            self.slow,
            self.limit,
            self.window_ms,
            self.hourly,
            self.version,
            tuple(sorted(self.counters.items())),
            tuple(sorted(self.policies.items())),
            tuple(
                self.thawed[index].frozen(self.late[index]) if index in self.thawed else frozen
                for index, frozen in enumerate(self.frozen)
            ),
            self.unread,
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
        assert not found.refused, f"refused: {found.refused}"
        _, entries = ledger.take_dirty()
        for key, stored in entries.counters:
            self.counters[key] = stored[:1] + bytes(8) + stored[9:]
        self.policies.update(entries.policies)
        return found

    def arrive(self, batch: SentBatch) -> Late:
        """Fold a batch of one check. Return what its sender has not read yet."""
        self.last = batch.value
        [answer] = self.append(batch.value).answers
        assert isinstance(answer, Decision)
        if answer.allowed:
            self.admit(batch.checks[0].cost)
        return Late(batch, [answer], self.version)

    def reply(self, index: int, late: Late) -> None:
        """Have the sender read the reply."""
        assert late.answers is not None
        [allowed] = self.holder(index).answered(late.batch, late.answers, late.applied)
        if allowed and not late.answers[0].allowed:
            self.admit(late.batch.checks[0].cost)

    def admit(self, cost: int) -> None:
        self.admitted.append((self.now_ms, cost))
        self.has_admitted = True

    # --- events; one that is not possible does nothing ---

    def ask(self, index: int, cost: int = 1, *, replied: bool = True) -> None:
        """A caller asks a process, whose cache answers or asks the log."""
        check = Check(CLIENT, cost)
        if self.holder(index).admit(check):
            self.admit(cost)
        else:
            batch = self.holder(index).send([check])
            late = self.arrive(batch)
            if replied:
                self.reply(index, late)
            else:
                self.holder(index).lost(batch)

    def use_all(self, index: int) -> None:
        """Callers ask a process for as long as its cache answers."""
        while self.holder(index).rescue(Check(CLIENT)):
            self.admit(1)

    def ask_late(self, index: int) -> None:
        """As :meth:`ask`, but the process gives up before its record arrives."""
        holder, check = self.holder(index), Check(CLIENT)
        if self.late[index] is None and not holder.admit(check):
            batch = holder.send([check])
            self.late[index] = Late(batch)
            holder.lost(batch)

    def late_arrives(self, index: int) -> None:
        self.holder(index)
        late, self.late[index] = self.late[index], None
        if late is not None:
            self.arrive(late.batch)

    def ask_slowly(self, index: int) -> None:
        """As :meth:`ask`, but the reply is on its way."""
        holder, check = self.holder(index), Check(CLIENT)
        if self.late[index] is None and not holder.admit(check):
            self.late[index] = self.arrive(holder.send([check]))

    def reply_arrives(self, index: int) -> None:
        self.holder(index)
        late, self.late[index] = self.late[index], None
        if late is not None:
            self.reply(index, late)

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
                self.has_admitted = True

    def settle_reservation(self) -> None:
        if self.reserved is not None:
            rows = [SettlementRow(CLIENT, "", (Settlement(RESERVED, 1),))]
            found = self.append(encode_settlements(SettlementBatch(-1, 99, 1, rows)))
            if found.settled == [(SETTLED_NOW,)]:
                self.reserved = self.reserved[0], 1

    def wait(self, by_ms: int) -> None:
        self.now_ms += by_ms

    def change(self, limit: int, window_ms: int = WINDOW_MS, *, read: bool = True) -> None:
        """Change the limit. All processes read of it, or only B does, and the change is confirmed later."""
        if (limit, window_ms) == (self.limit, self.window_ms):
            return
        self.version += 1
        for index in range(0 if read else 1, len(self.frozen)):
            self.holder(index).hear("client", CLIENT, self.version)
        longer = (Limit(limit + 2, 60 * WINDOW_MS),) if self.hourly else ()
        policy = Policy((*longer, Limit(limit, window_ms)))
        self.append(encode_update(Update(self.version, "client", CLIENT, "", policy)))
        self.limit, self.window_ms = limit, window_ms
        self.unread = 0 if read else self.version
        if not read:
            self.now_ms += CONFIRMED_MS

    def read(self) -> None:
        """Process A reads of the changed limit."""
        if self.unread:
            self.holder(0).hear("client", CLIENT, self.unread)
            self.unread = 0
            self.holder(0).prove()

    def reset(self) -> None:
        """Reset the client.

        A lease is used only with proof that no update came. That proof may be a little old, so a reset must
        be strict even for a process that has not heard of it.
        """
        self.version += 1
        self.append(encode_update(Update(self.version, "reset", CLIENT, "", None)))
        self.admitted.clear()
        if self.reserved is not None:
            self.reserved = 0, 0

    def verify(self) -> None:
        """If anything was admitted now, no interval that ends now admits more than the limit."""
        if not self.has_admitted:
            return  # more than a limit that was lowered since may have been admitted
        counted = self.admitted if self.reserved is None else [*self.admitted, self.reserved]
        limits = [(self.limit, self.window_ms)]
        if self.hourly:
            limits.append((self.limit + 2, 60 * WINDOW_MS))
        for limit, window_ms in limits:
            spent = sum(units for at_ms, units in counted if at_ms >= self.now_ms - window_ms)
            assert spent <= limit, f"{spent} admitted of {limit}"


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
EXPIRE: Event = ("a lease ends", lambda world: world.wait(TTL_MS))
LEAVE: Event = ("almost a window passes", lambda world: world.wait(WINDOW_MS - 100))
MOST: Event = ("most of a lease passes", lambda world: world.wait(2_300))
HALF: Event = ("half a lease and 3 ms pass", lambda world: world.wait(TTL_MS // 2 + 3))
WINDOW: Event = ("a window passes, but for 1 ms", lambda world: world.wait(WINDOW_MS - 1))
SLOWLY: Event = ("A is asked, and the reply is on its way", lambda world: world.ask_slowly(0))
REPLY: Event = ("the reply arrives", lambda world: world.reply_arrives(0))
LOWER: Event = ("the limit is 3", lambda world: world.change(3))
RAISE: Event = ("the limit is 5", lambda world: world.change(5))
UNREAD: Event = ("the limit is 3, and A does not read of it", lambda world: world.change(3, read=False))
READ: Event = ("A reads of the limit", lambda world: world.read())
SHORT: Event = ("the window is short", lambda world: world.change(world.limit, SHORT_MS))
LONG: Event = ("the window is a minute", lambda world: world.change(world.limit))
RESET: Event = ("a reset", lambda world: world.reset())


class Scope(NamedTuple):
    """A limit, and events.

    Attributes:
        limit: The limit at first.
        events: The events.
        hourly: Whether there is another limit, for an hour.
        slow: Whether the clocks of the processes are slow, and a lease ends before a tick does.
        want: Units that an ask for a lease requests.
    """

    limit: int
    events: list[Event]
    hourly: bool = False
    slow: bool = False
    want: int = 3


SCOPES = {
    "late and repeated records": Scope(5, [ASK_A, LATE, ARRIVE, AGAIN, BIG_A, SETTLE_A, CHECK]),
    "late replies": Scope(5, [ASK_A, ALL_A, SLOWLY, REPLY, BIG_A, SETTLE_A, CHECKS]),
    "replies and updates": Scope(5, [ASK_A, SLOWLY, REPLY, LOWER, PART, CHECKS]),
    "two processes": Scope(5, [ASK_A, LOSE, BIG_A, SETTLE_A, LOSE_S, ASK_B, CHECK], want=1),
    "large leases": Scope(5, [ASK_A, LOSE, BIG_A, SETTLE_A, ASK_B, CHECK]),
    "renewals": Scope(6, [ASK_A, LOSE, LATE, BIG_A, PART, CHECK], want=2),
    "lost reports": Scope(4, [ASK_A, LATE, ARRIVE, BIG_A, CHECKS]),
    "two limits": Scope(3, [ASK_A, ASK_B, BIG_A, CHECK, LEAVE], hourly=True),
    "ends": Scope(4, [ASK_A, ALL_A, SETTLE_A, LOSE_S, MOST, LEAVE, CHECKS]),
    "parts of leases": Scope(4, [ASK_A, ALL_A, LOSE, PART, EXPIRE, LEAVE, CHECKS]),
    "slow clocks": Scope(4, [ASK_A, ALL_A, SLOWLY, REPLY, HALF, WINDOW, CHECKS], slow=True),
    "reservations": Scope(4, [RESERVE, SETTLE, AGAIN, ASK_A, SETTLE_A, EXPIRE, CHECK]),
    "updates": Scope(5, [ASK_A, ALL_A, LOWER, RESET, RESERVE, EXPIRE, CHECKS]),
    "raised limits": Scope(4, [ASK_A, ALL_A, RESERVE, SETTLE, RAISE, EXPIRE, CHECKS]),
    "unread updates": Scope(5, [ASK_A, ALL_A, SETTLE_A, RAISE, UNREAD, READ, CHECKS]),
    "windows": Scope(5, [ASK_A, RESERVE, SETTLE, SHORT, LONG, EXPIRE, CHECKS]),
}


EAGER = {"MIN_CHECKS": 1, "MIN_CHECKS_AGAIN": 0, "SURPLUS": 0, "RETRY_S": 0, "MAX_RETRY_S": 0}
"""Constants of the lease cache that are about its economy."""


def explore(scope: Scope) -> tuple[list[str], int]:
    """Apply every sequence of the scope's events.

    Returns:
        The first sequence found that breaks the guarantee, with how it does, or nothing; and how many states
        were seen.
    """
    start_ms = BEFORE_TICK if scope.slow else START
    world = World(
        State(
            start_ms,
            scope.slow,
            scope.limit + 1,
            WINDOW_MS,
            scope.hourly,
            0,
            (),
            (),
            (b"", b""),
            0,
            None,
            (),
            None,
        )
    )
    world.append(ENABLED)
    world.change(scope.limit)
    repeatable = AGAIN in scope.events
    level: dict[State, list[str]] = {world.packed(repeatable=repeatable): []}
    seen = 1
    for _ in range(LENGTH):
        following: dict[State, list[str]] = {}
        for state, path in level.items():
            for name, event in scope.events:
                world = World(state)
                event(world)
                try:
                    world.verify()
                except AssertionError as broken:
                    return [*path, name, str(broken)], seen
                after = world.packed(repeatable=repeatable)
                if after not in following and after != state:
                    following[after] = [*path, name]
        level = following
        seen += len(level)
    return [], seen


@pytest.mark.parametrize("scope", SCOPES)
def test_every_sequence_of_events_keeps_the_limit(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in EAGER.items():
        monkeypatch.setattr(lease_cache, name, value)
    monkeypatch.setattr(lease_cache, "MIN_WANT", SCOPES[scope].want)
    monkeypatch.setattr(lease_table, "LOW_PERMITS", 2)
    monkeypatch.setattr(holds, "MIN_LEASE", 1)
    monkeypatch.setattr(holds, "SHARE", 1)
    broken, seen = explore(SCOPES[scope])
    assert not broken, " -> ".join(broken)
    assert seen > 500
