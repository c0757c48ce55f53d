"""No interval of any window admits more than the limit, measured by the times at which holders admit.

The model consists of one client, the real fold, and holders with clocks of their own. Records to the log, and
replies to holders, are delayed, reordered, lost and duplicated. The log does not contain the admissions of
leases. A reservation admits what is used of it at its grant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from stoplog_worker.algorithm.fold import Folded, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.verify.replay import NothingStored

from stoplog.policy import UNLIMITED, Policy, parse_policy
from stoplog.wire.checks import Batch, Check, encode_batch, encode_settlements, encode_update
from stoplog.wire.holds import RESERVATION, Ask, HoldRow, Settlement, SettlementBatch, SettlementRow
from stoplog.wire.limit_updates import ENABLE_HOLDS, Update
from stoplog.wire.replies import Decision, HeldDecision
from tests.support.holder import Holder
from tests.support.ledgers import checkpoint
from tests.support.memory_store import MemoryStore

CLIENT = "a"
START = 1_764_000_000_123
FIRST = Marker(0, 0, -1, -1, "", parse_policy("40/40s"))
POLICIES = [
    parse_policy("40/40s"),
    parse_policy("24/minute"),
    parse_policy(["120/5m", "40/50s"]),
    parse_policy(["150/10m", "100/3m", "60/30s"]),
    parse_policy("18/20s"),
]
FAULT = fault_finder(0, 1)


class World:
    """One client, its partition in two lanes, and its holders."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now_ms = START
        self.era_ms = START
        self.policy = FIRST.default
        self.lanes = Ledger(NothingStored(), FIRST), MemoryStore()
        self.offset = self.sent = self.number = self.version = 0
        self.due: list[tuple[int, int, Callable[[], None]]] = []
        self.admitted: list[tuple[int, int]] = []
        self.reserved: dict[tuple[int, int, int], tuple[int, int]] = {}
        self.did: Counter[str] = Counter()
        self.holders = [self.a_holder(number) for number in (1, 2)]
        self.append(encode_update(Update(0, ENABLE_HOLDS.kind, ENABLE_HOLDS.id, "", UNLIMITED)))

    def a_holder(self, incarnation: int) -> Holder:
        rate, ahead = self.random.choice((0.99, 1.0, 1.01)), self.random.randrange(10_000)
        return Holder(incarnation, lambda: ahead + (self.now_ms - START) * rate)

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
        if lossy and fate < 0.15:
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
        delay_ms = self.random.choice((0, 1, 1, 2, 2, 5, 5, 20, 20, 80, 300, 1_500))
        self.sent += 1
        self.due.append((self.now_ms + delay_ms, self.sent, do))

    # --- events ---

    def wait(self) -> None:
        until = self.now_ms + self.random.choice((0, 1, 3, 3, 10, 10, 40, 40, 100, 300, 1_000, 4_000, 20_000))
        while due := min((event for event in self.due if event[0] <= until), default=None):
            self.due.remove(due)
            self.now_ms = max(self.now_ms, due[0])
            due[2]()
        self.now_ms = until

    def admit(self) -> None:
        holder = self.random.choice(self.holders)
        for _ in range(self.random.choice((1, 2, 5, 9))):
            if holder.admit():
                self.did["leased"] += 1
                self.note(1)

    def note(self, units: int) -> None:
        self.admitted.append((self.now_ms, units))

    def check(self) -> None:
        cost = self.random.choice((0, 1, 1, 2, 5))

        def appended(found: Folded) -> None:
            [answer] = found.answers
            assert isinstance(answer, Decision)
            if answer.allowed:
                self.did["checked"] += cost > 0
                self.note(cost)
            else:
                self.did["denied"] += 1

        self.send(encode_batch(Batch(-1, 9, 1, [Check(CLIENT, cost)])), appended, lossy=False)

    def ask(self) -> None:
        holder = self.random.choice(self.holders)
        cost = self.random.choice((0, 1, 2))
        sent, settlements = holder.ask(
            self.random.choice((4, 8, 30)), self.random.choice((300, 2_000, 9_000))
        )
        row = HoldRow(0, sent.ask, settlements)

        def appended(found: Folded) -> None:
            [answer] = found.answers
            assert isinstance(answer, HeldDecision)
            if answer.allowed:
                self.note(cost)
            self.did["granted"] += answer.grant is not None
            if self.random.random() > 0.15:
                self.later(lambda: holder.answered(sent, answer.grant))

        self.send(encode_batch(Batch(0, holder.incarnation, 1, [Check(CLIENT, cost)], [row])), appended)

    def give_back(self) -> None:
        settlements = self.random.choice(self.holders).give_back()
        if settlements:
            self.settle(settlements)

    def settle(self, settlements: tuple[Settlement, ...]) -> None:
        batch = SettlementBatch(-1, 1, 1, [SettlementRow(CLIENT, "", settlements)])

        def appended(found: Folded) -> None:
            [answer] = found.settled
            assert isinstance(answer, tuple)
            self.did["settled"] += sum(answer)

        self.send(encode_settlements(batch), appended)

    def reserve(self) -> None:
        self.number += 1
        cost, ttl_ms = self.random.choice((1, 3, 9)), self.random.choice((50, 400, 3_000, 30_000))
        id_ = (99, self.number, 0)
        row = HoldRow(0, Ask(RESERVATION, id_, 0, 0, ttl_ms))

        def appended(found: Folded) -> None:
            [answer] = found.answers
            assert isinstance(answer, HeldDecision)
            if answer.allowed:
                self.did["reserved"] += 1
                self.reserved[id_] = (self.now_ms, cost)
                used = self.random.randrange(cost + 1)
                if self.random.random() < 0.7:
                    self.later(lambda: self.settle_reservation(id_, used))

        self.send(encode_batch(Batch(0, 99, 1, [Check(CLIENT, cost)], [row])), appended)

    def settle_reservation(self, id_: tuple[int, int, int], used: int) -> None:
        batch = SettlementBatch(-1, 1, 1, [SettlementRow(CLIENT, "", (Settlement(id_, used),))])

        def appended(found: Folded) -> None:
            if found.settled == [(True,)]:
                self.reserved[id_] = (self.reserved[id_][0], used)
                self.did["settled"] += 1

        self.send(encode_settlements(batch), appended)

    def update(self) -> None:
        """Change the limits, or reset the client. Each holder stops using its leases, as without a proof."""
        for holder in self.holders:
            holder.give_back()
        self.version += 1
        reset = self.random.random() < 0.4
        policy: Policy | None = None if reset else self.random.choice(POLICIES)
        self.append(encode_update(Update(self.version, "reset" if reset else "client", CLIENT, "", policy)))
        self.verify()
        self.policy = policy or self.policy
        self.era_ms = self.now_ms

    def restart(self) -> None:
        """A holder dies. Another one with a new incarnation comes."""
        index = self.random.randrange(len(self.holders))
        self.holders[index] = self.a_holder(self.random.randrange(100, 2**40))

    # --- the guarantee ---

    def verify(self) -> None:
        """Check every interval since the last change of limits."""
        log = [*self.admitted, *self.reserved.values()]
        log = sorted((at_ms, units) for at_ms, units in log if at_ms >= self.era_ms)
        for limit in self.policy.limits:
            for began, _ in log:
                spent = sum(units for at_ms, units in log if began <= at_ms <= began + limit.window_ms)
                assert spent <= limit.max, (limit, began - START, [(at - START, n) for at, n in log])


STEPS = {
    World.wait: 30,
    World.admit: 40,
    World.check: 8,
    World.ask: 20,
    World.give_back: 4,
    World.reserve: 4,
    World.update: 1,
    World.restart: 1,
}
"""Weight of each event."""


def run(random: Random, steps: int = 200) -> World:
    world = World(random)
    weights = dict(STEPS)
    if random.random() < 0.5:
        weights[World.update] = 0  # long eras exceed limits if anything does
        world.version += 1
        world.policy = random.choice(POLICIES)
        world.append(encode_update(Update(world.version, "client", CLIENT, "", world.policy)))
    for _ in range(steps):
        [do] = random.choices(list(weights), list(weights.values()))
        do(world)
    world.verify()
    return world


@given(st.randoms(use_true_random=True))
@settings(max_examples=150)
def test_admissions_of_holders_never_exceed_a_limit(random: Random) -> None:
    run(random)


def test_model_of_holders_exercises_every_kind_of_hold() -> None:
    did: Counter[str] = Counter()
    for seed in range(30):
        did += run(Random(seed)).did
    for name in ("leased", "granted", "settled", "reserved", "denied", "checked", "duplicates"):
        assert did[name] > 50, did
