"""The cache denies only what the log denies: a comparison with the algorithm, under random events.

The model is one partition and everything that is asynchronous about it. Records wait for the worker, and
replies for the gateway. Updates are written but not relayed, or relayed but not read by the cache. Proofs
have been requested but not reported. All clocks are equal, so the worker would decide a check at the moment
it is asked. Both gateways reserve, settle more than was held, charge above limits, and refund.
"""

from __future__ import annotations

from collections import Counter, deque
from random import Random
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st
from stoplog_worker.algorithm.fold import Answer, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker, state_key
from stoplog_worker.verify.replay import NothingStored, Record, replay

from stoplog.client.deny_cache import DenyCache
from stoplog.client.metrics import Metrics
from stoplog.client.update_proofs import PROOF_S
from stoplog.policy import UNLIMITED, Policy, parse_policy
from stoplog.wire.checks import (
    Batch,
    Check,
    Denials,
    decode_checks_record,
    encode_batch,
    encode_denials,
    encode_update,
)
from stoplog.wire.holds import CHARGE, LEASE, REFUND, RESERVATION, Ask, HoldRow, Settlement
from stoplog.wire.limit_updates import Update, enabling_update
from stoplog.wire.replies import Decision, Reply, as_held

PROOF_MS = int(PROOF_S * 1_000)
DEFAULT = parse_policy("3/4s")
POLICIES: list[Policy | None] = [
    parse_policy("2/2s"),
    parse_policy(["4/10s", "2/1s"]),
    parse_policy("9/4s"),
    parse_policy("5/61s"),
    parse_policy("0/minute"),
    parse_policy(["4/6s", "refundable"]),
    UNLIMITED,
    None,
]
CLIENTS, PLANS, RESOURCES = ("a", "a", "a", "b"), ("", "", "", "gold", "tin"), ("", "", "", "login")
FAULT = fault_finder(0, 1)


Hold = tuple[int, int, int]


def new_ledger() -> Ledger:
    return Ledger(NothingStored(), Marker(0, 0, -1, -1, "", DEFAULT))


def is_at_least(shown_ms: int | None, true_ms: int | None, since_ms: int) -> bool:
    """Return whether a shown wait is no shorter than one that was true at *since_ms* (negative: before)."""
    if shown_ms is None or true_ms is None:
        return shown_ms is true_ms
    return shown_ms >= true_ms + since_ms


class World:
    """A gateway with a cache, a gateway without one, and the partition of both."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.now_ms = 1_764_000_000_123
        self.log: list[Record] = []
        self.grown: deque[tuple[int, int]] = deque([(0, 0)])  # time, and the length of the log from then on
        self.ledger = new_ledger()
        self.sent: dict[int, tuple[list[Check], float]] = {}
        self.replies: deque[Reply] = deque()
        self.updates: list[Update] = []
        self.relayed = self.seen = self.decided = 0
        self.end: tuple[int, float] | None = None
        self.metrics = Metrics()
        self.cache = DenyCache(self.metrics, 1, 20, self.clock)
        self.cache.on_proof([0], self.clock())
        self.did: Counter[str] = Counter()
        self.one_client = random.choice((True, False))
        """Whether there is one client, whose limits stay as they are, with many holds and charges."""
        self.within_limits = random.random() < 0.4
        """Whether nothing is charged that no limit judges."""
        self.failing_open = random.choice((0.0, 0.1, 0.6))
        """How often a check would fail open if no denial is certain."""
        self.weights = ONE_CLIENT if self.one_client else STEPS
        self.one_plan = self.one_client or random.choice((True, False))
        """Whether all checks are under one plan. Only then is every shown number exact."""
        self.held: list[tuple[Hold, Check, int]] = []
        """The open reservations and leases: id, check and units."""
        self.charges_elsewhere = random.choice((True, False))
        """Whether the other gateway makes charges that no limit judges, as the worker has announced."""
        self.cache.expect_unjudged({0} if self.charges_elsewhere else set())
        self.append(encode_update(enabling_update()))

    def clock(self) -> float:
        return self.now_ms / 1_000

    def step(self) -> None:
        [do] = self.random.choices(list(self.weights), list(self.weights.values()))
        do(self)

    # --- events ---

    def wait(self) -> None:
        if self.one_client:
            self.now_ms += self.random.choice((1, 20, 60, 210, 210, 700))
            return
        self.now_ms += self.random.choice((0, 1, 5, 5, 20, 20, 60, 60, 210, 700, 1_900, 4_000))

    def ask(self, check: Check | None = None) -> None:
        check = check or self.a_check()
        failing_open = self.random.random() < self.failing_open
        answer = self.cache.get(check, failing_open=failing_open)
        if answer is None:
            self.send(check)
            return
        assert not answer.allowed
        assert not answer.degraded
        decisions = self.decisions(check)
        denials = [decision for _, decision in decisions if not decision.allowed]
        assert denials, (check, answer, decisions)
        self.did["denied"] += 1
        self.did["before the log"] += decisions[-1][1].allowed
        if self.one_plan and not failing_open:
            assert any(
                decision.remaining == answer.remaining
                and is_at_least(answer.retry_after_ms, decision.retry_after_ms, at_ms - self.now_ms)
                for at_ms, decision in decisions
                if not decision.allowed
            ), (check, answer, decisions)
            self.did["numbers after spending"] += len({decision.remaining for decision in denials}) > 1
            state = self.ledger.states.get(state_key(check))
            self.did["denied while held"] += state is not None and state.holds is not None

    def other(self) -> None:
        """The other gateway sends a batch."""
        self.append(encode_batch(Batch(-1, 8, 1, [self.a_check() for _ in range(3)])))

    def send(self, check: Check, *rows: HoldRow) -> None:
        self.sent[len(self.log)] = ([check], self.clock())
        self.append(encode_batch(Batch(0, 7, len(self.log), [check], list(rows))))

    def reserve(self) -> None:
        """The other gateway reserves, or asks for a lease."""
        kind: Literal[0, 1] = RESERVATION if self.random.random() < 0.7 else LEASE
        check = self.a_check()
        id_ = (8, len(self.log), 0)
        ask = Ask(kind, id_, id_[1], 9, self.random.choice((50, 400, 4_000, 60_000)))
        self.append(encode_batch(Batch(-1, 8, 1, [check], [HoldRow(0, ask)])))
        self.held.append((id_, check, check.cost if kind == RESERVATION else 1))

    def settle_hold(self) -> None:
        """The other gateway settles, in part or for more than was held."""
        if held := [one for one in self.held if self.is_open(*one)] or self.held:
            one = self.random.choice(held)
            self.held.remove(one)
            id_, check, units = one
            used = self.random.choice((0, 0, 1, units, units + 1, units + 5))
            if self.within_limits:
                used = min(used, units)
            partial = self.random.random() < 0.2
            self.other_row(check, HoldRow(0, None, (Settlement(id_, used, partial),)))
            self.did["settled above its units"] += used > units

    def is_open(self, id_: Hold, check: Check, _units: int) -> bool:
        state = self.ledger.states.get(state_key(check))
        return state is not None and state.holds is not None and state.holds.get(id_) is not None

    def charge(self) -> None:
        """A gateway charges above limits, or refunds."""
        if self.within_limits:
            return
        check = self.a_check()
        # A refund under another plan may end a denial: see docs/design/deny-cache.md.
        kind: Literal[2, 3] = REFUND if self.one_plan and self.random.random() < 0.3 else CHARGE
        row = HoldRow(0, Ask(kind, (8, len(self.log), 0), 0, self.random.choice((1, 3, 9)), 1))
        if self.charges_elsewhere and self.random.random() < 0.7:
            self.other_row(check, row)
            self.did["charged elsewhere"] += 1
        else:
            self.send(Check(check.client, 0, check.plan, check.resource), row)
            self.settle()
            self.did["charged here"] += 1

    def other_row(self, check: Check, row: HoldRow) -> None:
        bearer = Check(check.client, 0, check.plan, check.resource)
        self.append(encode_batch(Batch(-1, 8, 1, [bearer], [row])))

    def a_check(self) -> Check:
        choice = self.random.choice
        if self.one_client:
            return Check("a", choice((1, 1, 1, 1, 1, 2)))
        plan = "" if self.one_plan else choice(PLANS)
        return Check(choice(CLIENTS), choice((0, 1, 1, 1, 2, 2, 3)), plan, choice(RESOURCES))

    def write(self) -> None:
        choice = self.random.choice
        kind = choice(("client", "client", "plan", "default", "reset", "reset"))
        id_ = {"plan": choice(PLANS[3:]), "default": ""}.get(kind, choice(CLIENTS))
        policy = choice(POLICIES) if kind != "reset" else None
        self.updates.append(Update(len(self.updates), kind, id_, choice(RESOURCES), policy))

    def relay(self) -> None:
        if self.relayed < len(self.updates):
            self.append(encode_update(self.updates[self.relayed]))
            self.relayed += 1

    def decide(self) -> None:
        """The worker processes the next record."""
        if self.decided == len(self.log):
            return
        record = self.log[self.decided]
        self.decided += 1
        answers = fold(self.ledger, *record, FAULT).answers
        if record.offset in self.sent:
            answers = [as_held(answer) if isinstance(answer, Decision) else answer for answer in answers]
            self.replies.append(Reply(7, record.offset, record.offset, self.ledger.applied, answers))

    def reply(self) -> None:
        if self.replies:
            reply = self.replies.popleft()
            checks, sent_at = self.sent[reply.number]
            self.cache.learn(0, checks, reply, sent_at, held=True)
            if self.carried(reply.number):
                self.cache.on_hold(checks[0])

    def carried(self, offset: int) -> bool:
        """Return whether the record at *offset* carried a charge or a refund."""
        batch = decode_checks_record(self.log[offset].value)
        assert isinstance(batch, Batch)
        return bool(batch.hold_rows)

    def see_update(self) -> None:
        if self.seen < len(self.updates):
            update = self.updates[self.seen]
            self.seen += 1
            self.cache.on_update(0, update.key, update.version)

    def prove(self) -> None:
        """Report the requested proof if it is complete, then request another."""
        if self.end is not None and self.seen >= self.end[0]:
            self.cache.on_proof([0], self.end[1])
        self.end = len(self.updates), self.clock()
        if self.seen == len(self.updates):
            self.cache.on_proof([0], self.clock())

    def settle(self) -> None:
        """Everything under way arrives."""
        while self.decided < len(self.log):
            self.decide()
        while self.replies:
            self.reply()
        while self.seen < len(self.updates):
            self.see_update()
        self.prove()

    def sum_up(self) -> None:
        for partition, sums in self.cache.take_sums():
            assert partition == 0
            self.did["summed"] += sum(row.checks for row in sums)
            self.append(encode_denials(Denials(7, sums)))

    # --- the log and its decisions ---

    def append(self, value: bytes) -> None:
        self.log.append(Record(len(self.log), self.now_ms, value))
        self.grown.append((self.now_ms, len(self.log)))

    def decisions(self, check: Check) -> list[tuple[int, Decision]]:
        """Return the decisions on *check* after each state of the log in the last PROOF_S.

        Each is the decision at a time: when the log got into the state, and now.
        """
        grew_at = {length: at_ms for at_ms, length in self.grown if at_ms >= self.now_ms - PROOF_MS}
        before = max(n for at_ms, n in self.grown if n == 0 or at_ms <= self.now_ms - PROOF_MS)
        grew_at.setdefault(before, self.now_ms)
        asked = encode_batch(Batch(0, 7, 1, [check]))
        found = []
        for length, grew_ms in sorted(grew_at.items()):
            ledger = new_ledger()
            for record in self.log[:length]:
                fold(ledger, *record, FAULT)
            for offset, at_ms in enumerate((grew_ms, self.now_ms), length):
                [answer] = fold(ledger, offset, at_ms, asked, FAULT).answers
                assert isinstance(answer, Decision)
                found.append((at_ms, answer))
                if answer.allowed:
                    break  # it was charged
        return found


STEPS = {
    World.ask: 30,
    World.wait: 10,
    World.settle: 8,
    World.prove: 8,
    World.decide: 8,
    World.reply: 8,
    World.see_update: 2,
    World.relay: 5,
    World.write: 3,
    World.other: 1,
    World.reserve: 2,
    World.settle_hold: 2,
    World.charge: 1,
    World.sum_up: 1,
}
"""Weight of each event."""


ONE_CLIENT = {
    World.ask: 30,
    World.wait: 20,
    World.settle: 25,
    World.prove: 8,
    World.reserve: 12,
    World.settle_hold: 6,
    World.charge: 3,
}
"""The same for one client: what is under way arrives soon."""


@settings(max_examples=60)
@given(st.randoms(use_true_random=True))
def test_cache_under_random_events_denies_only_what_log_denies(random: Random) -> None:
    world = World(random)
    for _ in range(200):
        world.step()
    world.sum_up()
    assert world.did["summed"] == world.did["denied"] == world.metrics.deny_hits
    check_trail(world.log)


def a_world_with_reservations(failing_open: float, *costs: int) -> World:
    """Return a world where the other gateway has reserved *costs* for one client."""
    world = World(Random(1))
    world.one_plan, world.failing_open = True, failing_open
    world.cache.expect_unjudged(set())
    for number, cost in enumerate(costs):
        ask = Ask(RESERVATION, (8, number, 0), 0, 0, 60_000)
        world.append(encode_batch(Batch(-1, 8, 1, [Check("a", cost)], [HoldRow(0, ask)])))
    return world


def settle_elsewhere(world: World, number: int, used: int) -> None:
    """Settle a reservation, and wait until no earlier state of the log counts."""
    world.other_row(Check("a"), HoldRow(0, None, (Settlement((8, number, 0), used),)))
    world.settle()
    world.now_ms += PROOF_MS + 100
    world.prove()


def test_settlement_above_its_units_changes_no_denial_that_is_shown() -> None:
    world = a_world_with_reservations(0.0, 1, 1)
    settle_elsewhere(world, 0, 7)
    for _ in range(2):
        world.ask(Check("a"))  # denied by charges, while a unit is held
        world.settle()
    assert world.did["denied"] == 1
    world.now_ms += 1_000
    settle_elsewhere(world, 1, 4)
    before = len(world.log)
    world.ask(Check("a"))
    assert len(world.log) == before + 1


def test_denial_by_held_units_ends_when_they_may_be_back() -> None:
    world = a_world_with_reservations(1.0, 3)
    world.ask(Check("a"))
    world.settle()
    settle_elsewhere(world, 0, 0)
    before = len(world.log)
    world.ask(Check("a"))
    assert len(world.log) == before + 1


def check_trail(log: list[Record]) -> None:
    """The sums in the log change no other decision."""

    def answers(records: list[Record]) -> dict[int, list[Answer]]:
        return dict(replay(records, 0, 1, DEFAULT))

    with_sums = answers(log)
    without = answers([r for r in log if not isinstance(decode_checks_record(r.value), Denials)])
    assert all(with_sums[offset] == found for offset, found in without.items())


def test_denial_with_plan_of_shorter_windows_ends_before_its_stated_time() -> None:
    """A plan with shorter windows forgets a request at the end of the window, up to one tick early."""
    asked, other = Check("a", plan="gold"), Check("a", 0, plan="tin")
    start, denied_at, stated_ms = 60_000 * 30_000_000, 101, 60_899

    def log_allows_after(wait_ms: int) -> bool:
        checks = [(100, asked), (denied_at, asked), (denied_at, other)]
        checks += [(denied_at + wait_ms, other), (denied_at + wait_ms, asked)]
        values = [
            (0, encode_update(Update(0, "plan", "gold", "", parse_policy("1/minute")))),
            (0, encode_update(Update(1, "plan", "tin", "", parse_policy("9/1s")))),
            *((at_ms, encode_batch(Batch(0, 7, 1, [check]))) for at_ms, check in checks),
        ]
        records = [Record(offset, start + at_ms, value) for offset, (at_ms, value) in enumerate(values)]
        answers = [answers[0] for _, answers in replay(records, 0, 1, DEFAULT) if answers]
        decisions = [answer for answer in answers if isinstance(answer, Decision)]
        assert (decisions[1].allowed, decisions[1].retry_after_ms) == (False, stated_ms)
        return decisions[-1].allowed

    def cache_denies_after(wait_ms: int) -> bool:
        now = [0.0]
        cache = DenyCache(Metrics(), 1, 1, lambda: now[0])
        cache.on_proof([0], now[0])
        cache.learn(0, [asked], Reply(7, 1, 0, 0, [Decision(False, 1, 0, stated_ms, stated_ms, 0)]), now[0])
        now[0] = wait_ms / 1_000
        cache.on_proof([0], now[0])
        return cache.get(asked) is not None

    waits_ms = (59_899, 60_000, 60_001, stated_ms)
    assert [log_allows_after(wait_ms) for wait_ms in waits_ms] == [False, False, True, True]
    assert [cache_denies_after(wait_ms) for wait_ms in waits_ms] == [True, False, False, False]


def test_model_of_cache_exercises_denials_and_delayed_updates() -> None:
    did: Counter[str] = Counter()
    for seed in range(100):
        world = World(Random(seed))
        for _ in range(200):
            world.step()
        did += world.did
    assert did["denied"] > 200, did
    assert did["before the log"], "no denial was used between an update and its arrival at the cache"
    assert did["numbers after spending"], "no denial was used while the client spent"
    for name in ("denied while held", "settled above its units", "charged here", "charged elsewhere"):
        assert did[name] > 5, did
