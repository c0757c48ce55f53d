"""No interval of any window admits more than the limit, measured by the times at which holders admit.

The model consists of one client, the real fold, and processes with the real lease cache and clocks of their
own. Records to the log, and replies, are delayed, reordered, lost and duplicated. The real filter of a
process drops replies that come after their deadline, or again. Processes read updates late. The log does not
contain the admissions of leases. A reservation admits what is used of it at its grant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stoplog_worker.algorithm import holds
from stoplog_worker.algorithm.fold import Folded, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.verify.replay import NothingStored

from stoplog.client import lease_cache
from stoplog.client.in_flight import InFlight
from stoplog.client.update_proofs import PROOF_S
from stoplog.policy import Limit, Policy, parse_policy
from stoplog.wire.checks import Check, encode_settlements, encode_update
from stoplog.wire.holds import (
    RESERVATION,
    SETTLED_NOW,
    Ask,
    Settlement,
    SettlementBatch,
    SettlementRow,
)
from stoplog.wire.limit_updates import Update, enabling_update
from stoplog.wire.replies import Decision, HeldDecision
from tests.support.lease_holder import LeaseHolder
from tests.support.ledgers import checkpoint
from tests.support.memory_store import MemoryStore

CLIENT = "a"
START = 1_764_000_000_123
FIRST = Marker(0, 0, -1, -1, "", parse_policy("160/8s"))
POLICIES = [
    parse_policy("160/8s"),
    parse_policy("200/12s"),
    parse_policy(["900/1m", "180/10s"]),
    parse_policy(["900/2m", "500/36s", "150/8s"]),
    parse_policy("300/20s"),
]
FAULT = fault_finder(0, 1)
CONFIRMED_MS = int(PROOF_S * 1_000 * 1.02) + 1
"""Milliseconds after which a change is confirmed, by a clock that is 1 % slow."""


@pytest.fixture(autouse=True, scope="module")
def eager() -> Iterator[None]:
    """Have leases asked for and granted whenever the rules allow it, not only if they save records."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "MIN_CHECKS": 1,
            "MIN_CHECKS_AGAIN": 0,
            "MIN_WANT": 40,
            "RETRY_S": 0.005,
            "MAX_RETRY_S": 0.02,
        }.items():
            patch.setattr(lease_cache, name, value)
        patch.setattr(holds, "MIN_LEASE", 1)
        patch.setattr(holds, "SHARE", 1)
        yield


class World:
    """One client, its partition in two lanes, and two processes with leases."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now_ms = START
        self.era_ms = START
        self.policy = FIRST.default
        self.lanes = Ledger(NothingStored(), FIRST), MemoryStore()
        self.offset = self.sent = self.number = 0
        self.updates: list[tuple[int, str]] = [(START, "enable")]
        """When each update was written, and its kind."""
        self.due: list[tuple[int, int, Callable[[], None]]] = []
        self.admitted: list[tuple[int, int]] = []
        self.reserved: dict[tuple[int, int, int], tuple[int, int]] = {}
        self.did: Counter[str] = Counter()
        self.incarnations = 0
        self.in_flight = InFlight()
        """The batches without a reply, of all processes."""
        self.append(encode_update(enabling_update()))
        self.holders = [self.a_holder(), self.a_holder()]
        self.heard = [1, 1]
        """How many updates each of them has read."""

    def a_holder(self) -> LeaseHolder:
        rate, ahead = self.random.choice((0.99, 1.0, 1.01)), self.random.randrange(10_000)
        self.incarnations += 1
        max_ms = self.random.choice((300, 10_000, 10_000))
        holder = LeaseHolder(
            self.incarnations, max_ms, lambda: (ahead + (self.now_ms - START) * rate) / 1_000
        )
        holder.prove()
        return holder

    # --- the log ---

    def append(self, value: bytes) -> Folded:
        """Append a record: one lane keeps its states in memory, the other one loads them for each record."""
        kept, store = self.lanes
        loaded = Ledger(store, store.marker() or FIRST)
        found = fold(kept, self.offset, self.now_ms, value, FAULT)
        assert fold(loaded, self.offset, self.now_ms, value, FAULT) == found
        checkpoint(loaded, store)
        assert not found.refused
        self.offset += 1
        return found

    def send(self, value: bytes, on_append: Callable[[Folded], None], *, lossy: bool = True) -> None:
        """Have a record arrive in the log later, not at all, or twice. The first copy counts."""
        fate = self.random.random()
        if lossy and fate < 0.1:
            return
        copies: list[Folded] = []

        def arrive() -> None:
            copies.append(self.append(value))
            if len(copies) == 1:
                on_append(copies[0])

        self.later(arrive)
        if fate > 0.9:
            self.did["duplicates"] += 1
            self.later(arrive)

    def later(self, do: Callable[[], None]) -> None:
        delay_ms = self.random.choice((0, 0, 1, 1, 1, 2, 2, 2, 5, 5, 5, 20, 20, 80, 300, 1_500))
        self.sent += 1
        self.due.append((self.now_ms + delay_ms, self.sent, do))

    # --- events ---

    def wait(self) -> None:
        until = self.now_ms + self.random.choice(
            (0, 1, 3, 3, 10, 10, 40, 40, 100, 150, 150, 300, 1_000, 9_000)
        )
        while due := min((event for event in self.due if event[0] <= until), default=None):
            self.due.remove(due)
            self.now_ms = max(self.now_ms, due[0])
            due[2]()
        self.now_ms = until
        self.prove()

    def check(self) -> None:
        """Callers of one process ask. What its cache does not answer is sent in one batch."""
        holder = self.random.choice(self.holders)
        sent = []
        for _ in range(self.random.choice((1, 1, 2, 5))):
            check = Check(CLIENT, self.random.choice((0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 9)), self.a_plan())
            if holder.admit(check):
                self.did["leased"] += 1
                self.note(check.cost)
            else:
                sent.append(check)
        if sent:
            self.ask_log(holder, sent)
        assert holder.balanced

    def a_plan(self) -> str:
        return self.random.choice(("", "", "", "gold")) if self.several_plans else ""

    several_plans = False

    def ask_log(self, holder: LeaseHolder, checks: list[Check]) -> None:
        batch = holder.send(checks)
        pending = self.in_flight.new_batch(0)
        self.in_flight.add(pending)
        self.did["asked"] += len(batch.asks)
        replies = self.random.choice((0, 1, 1, 1, 1, 1, 1, 1, 1, 2))

        def appended(found: Folded) -> None:
            for check, answer in zip(checks, found.answers, strict=True):
                assert isinstance(answer, Decision)
                if answer.allowed:
                    self.did["checked"] += check.cost > 0
                    self.note(check.cost)
                else:
                    self.did["denied"] += 1
                self.did["granted"] += isinstance(answer, HeldDecision) and answer.grant is not None
            applied = self.lanes[0].applied
            for _ in range(replies):
                self.later(lambda: reply(found.answers, applied))

        def reply(answers: Sequence[Any], applied: int) -> None:
            if self.in_flight.take(pending.number) is None:
                self.did["ignored replies"] += 1
                return
            for check, answer, allowed in zip(
                checks, answers, holder.answered(batch, answers, applied), strict=True
            ):
                if allowed and not answer.allowed:
                    self.did["rescued"] += 1
                    self.note(check.cost)

        def give_up() -> None:
            if self.in_flight.give_up(pending.number) is not None:
                holder.lost(batch)

        self.send(batch.value, appended)
        self.sent += 1
        self.due.append((self.now_ms + 400, self.sent, give_up))

    def note(self, units: int) -> None:
        self.admitted.append((self.now_ms, units))

    def settle_leases(self) -> None:
        for value in self.random.choice(self.holders).settlements():
            self.send(value, self.on_settled)

    def on_settled(self, found: Folded) -> None:
        for answer in found.settled:
            assert isinstance(answer, tuple)
            self.did["settled"] += answer.count(SETTLED_NOW)

    def hear(self) -> None:
        """A process reads the next update."""
        index = self.random.randrange(len(self.holders))
        if self.heard[index] < len(self.updates):
            version = self.heard[index]
            self.heard[index] += 1
            self.holders[index].hear(self.updates[version][1], CLIENT, version)

    def prove(self) -> None:
        """Prove to each process that it has read all updates, if it has; else those before the next one."""
        for holder, heard in zip(self.holders, self.heard, strict=True):
            if heard == len(self.updates):
                holder.prove()

    def reserve(self) -> None:
        self.number += 1
        cost, ttl_ms = self.random.choice((1, 3, 9)), self.random.choice((50, 400, 3_000, 30_000))
        id_ = (99, self.number, 0)
        ask = Ask(RESERVATION, id_, 0, 0, ttl_ms)

        def appended(found: Folded) -> None:
            [answer] = found.answers
            assert isinstance(answer, HeldDecision)
            if answer.allowed:
                self.did["reserved"] += 1
                self.reserved[id_] = (self.now_ms, cost)
                used = self.random.randrange(cost + 1)
                if self.random.random() < 0.7:
                    self.later(lambda: self.settle_reservation(id_, used))

        self.send(self.random.choice(self.holders).reserve(Check(CLIENT, cost), ask), appended)

    def settle_reservation(self, id_: tuple[int, int, int], used: int) -> None:
        batch = SettlementBatch(-1, 1, 1, [SettlementRow(CLIENT, "", (Settlement(id_, used),))])

        def appended(found: Folded) -> None:
            if found.settled == [(SETTLED_NOW,)]:
                self.reserved[id_] = (self.reserved[id_][0], used)
                self.did["settled"] += 1

        self.send(encode_settlements(batch), appended)

    def update(self) -> None:
        """Change the limits, or reset the client. The processes hear of it later.

        The change is confirmed when they have heard of it or have lost their proof. The next era begins then.
        If all limits are raised, the era goes on: the higher limits hold for what was admitted before, too.
        """
        self.verify()
        kind = self.random.choice(("client", "raise", "reset"))
        policy: Policy | None = None
        if kind == "client":
            policy = self.random.choice(POLICIES)
        elif kind == "raise":
            policy = Policy(tuple(Limit(limit.max + 9, limit.window_ms) for limit in self.policy.limits))
        self.change(policy)
        if kind == "raise":
            self.did["raised"] += 1
        else:
            self.era_ms = self.now_ms + CONFIRMED_MS

    def change(self, policy: Policy | None) -> None:
        """Write an update: a policy, or a reset without one."""
        version, kind = len(self.updates), "client" if policy is not None else "reset"
        self.updates.append((self.now_ms, kind))
        self.append(encode_update(Update(version, kind, CLIENT, "", policy)))
        self.policy = policy or self.policy

    def restart(self) -> None:
        """A process dies. Another one with a new incarnation comes."""
        index = self.random.randrange(len(self.holders))
        self.holders[index], self.heard[index] = self.a_holder(), len(self.updates)
        if len(self.updates) > 1:
            self.holders[index].hear(self.updates[-1][1], CLIENT, len(self.updates) - 1)

    # --- the guarantee ---

    def verify(self) -> None:
        """Check every interval of the era: since the last update that did more than raise the limits."""
        log = [*self.admitted, *self.reserved.values()]
        log = sorted((at_ms, units) for at_ms, units in log if at_ms >= self.era_ms)
        for limit in self.policy.limits:
            for began, _ in log:
                spent = sum(units for at_ms, units in log if began <= at_ms <= began + limit.window_ms)
                assert spent <= limit.max, (limit, began - START, [(at - START, n) for at, n in log])


STEPS = {
    World.wait: 60,
    World.check: 60,
    World.settle_leases: 15,
    World.hear: 8,
    World.reserve: 3,
    World.update: 1,
    World.restart: 1,
}
"""Weight of each event."""


def run(random: Random, steps: int = 600) -> World:
    world = World(random)
    world.several_plans = random.random() < 0.2
    weights = dict(STEPS)
    if random.random() < 0.5:
        weights[World.update] = 0  # long eras exceed limits if anything does
        world.change(random.choice(POLICIES))
        for holder in world.holders:
            holder.hear("client", CLIENT, 1)
        world.heard = [2, 2]
    for _ in range(steps):
        [do] = random.choices(list(weights), list(weights.values()))
        do(world)
    world.verify()
    return world


@given(st.randoms(use_true_random=True))
@settings(max_examples=60)
def test_admissions_of_holders_never_exceed_a_limit(random: Random) -> None:
    run(random)


NAMES = (
    "leased",
    "asked",
    "granted",
    "settled",
    "rescued",
    "reserved",
    "denied",
    "checked",
    "duplicates",
    "ignored replies",
)


def test_model_of_holders_exercises_every_kind_of_hold() -> None:
    did: Counter[str] = Counter()
    for seed in range(15):
        did += run(Random(seed)).did
    for name in NAMES:
        assert did[name] > 10, did
