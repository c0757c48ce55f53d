"""Gateways with the real batcher and caches, and the real fold, in virtual time: strict and economical.

Records take 2 ms to the log, and replies 2 ms back. Checks come at random times.
"""

from __future__ import annotations

from bisect import bisect_left
from random import Random
from typing import Any

import pytest
from stoplog_worker.algorithm.fold import fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.verify.replay import NothingStored

from stoplog.client.answer import Answer, unwrap
from stoplog.client.arrivals import Arrivals
from stoplog.client.batcher import Batcher
from stoplog.client.degraded_mode import DegradedMode
from stoplog.client.deny_cache import DenyCache
from stoplog.client.lease_cache import LeaseCache
from stoplog.client.metrics import Metrics
from stoplog.client.pending_batch import HoldCall
from stoplog.client.top_rejected import Rejections
from stoplog.policy import Policy, parse_policy
from stoplog.wire.checks import Batch, Check, encode_settlements, encode_update
from stoplog.wire.holds import LEASE, RESERVATION, Ask, SettlementBatch
from stoplog.wire.limit_updates import Update, enabling_update
from stoplog.wire.replies import Reply, decode_any_reply, encode_held_reply
from tests.support.clockwork import Clockwork, FakeTransport

HOP_S = 0.002
FAULT = fault_finder(0, 1)
CLIENT = "alice"


class Log:
    """One partition and its worker."""

    def __init__(self, loop: Clockwork, policy: Policy) -> None:
        self.loop = loop
        self.ledger = Ledger(NothingStored(), Marker(0, 0, -1, -1, "", policy))
        self.checks = 0
        """Checks that records contained."""
        self.alive = True
        self.append(encode_update(enabling_update()))

    def append(self, value: bytes) -> Any:
        offset = self.ledger.next_offset
        folded = fold(self.ledger, offset, int(self.loop.now * 1_000), value, FAULT)
        assert not folded.refused, folded.refused
        return folded


class Gateway(FakeTransport):
    """A gateway whose records go to a log."""

    def __init__(self, log: Log, incarnation: int, max_ms: int) -> None:
        super().__init__()
        self.log, self.loop, self.incarnation = log, log.loop, incarnation
        self.metrics = Metrics()
        self.denials = DenyCache(self.metrics, 1, 1_000, self.loop.time)
        self.leases = LeaseCache(self.metrics, 1, incarnation, max_ms, self.loop.time)
        self.leases.enable([0])
        mode = DegradedMode(self.metrics, self.loop.time, lambda: int(self.loop.now * 1_000))
        self.batcher = Batcher(
            self.loop,
            self,
            self.metrics,
            mode,
            self.denials,
            self.leases,
            Arrivals(self.loop),
            Rejections(self.loop.time),
            partitions=1,
            deadline_s=0.25,
            max_misses=3,
            max_in_flight=100_000,
            clock=self.loop.time,
        )
        self.prove()
        self.settle()

    def prove(self) -> None:
        self.denials.on_proof([0], self.loop.now)
        self.leases.on_proof([0], self.loop.now)
        self.loop.call_later(0.05, self.prove)

    def settle(self) -> None:
        for _, rows in self.leases.take_settlements():
            value = encode_settlements(SettlementBatch(-1, self.incarnation, 0, rows))
            self.loop.call_later(HOP_S, self.log.append, value)
        self.loop.call_later(self.leases.pause_s, self.settle)

    def send_checks(self, partition: int, value: bytes, number: int, checks: int, record: Any = None) -> None:
        super().send_checks(partition, value, number, checks, record)
        self.loop.call_later(HOP_S, self.judge, value, self.last)

    def judge(self, value: bytes, batch: Batch) -> None:
        if not self.log.alive:
            return
        folded = self.log.append(value)
        self.log.checks += len(batch.checks)
        reply = Reply(batch.incarnation, batch.number, 0, self.log.ledger.applied, folded.answers)
        decoded = decode_any_reply(encode_held_reply(reply))
        assert isinstance(decoded, Reply)
        self.loop.call_later(HOP_S, self.batcher.on_replies, [decoded])

    def hear(self, update: Update) -> None:
        self.denials.on_update(0, update.key, update.version)
        self.leases.on_update(0, update.key, update.version)


class Run:
    """Gateways that ask at random times, and what they admit."""

    def __init__(self, *limits: str, gateways: int = 3, max_ms: int = 10_000, seed: int = 1) -> None:
        self.random = Random(seed)
        self.loop = Clockwork()
        self.policy = parse_policy(list(limits))
        self.log = Log(self.loop, self.policy)
        self.gateways = [Gateway(self.log, number, max_ms) for number in range(1, gateways + 1)]
        self.admitted: list[float] = []
        self.asked = self.degraded = 0
        self.waits: list[float] = []

    def ask(self, gateway: Gateway) -> None:
        began = self.loop.now
        self.asked += 1

        def answered(answer: Any) -> None:
            assert isinstance(answer, Answer)
            self.waits.append(self.loop.now - began)
            if answer.degraded:
                self.degraded += 1
            elif answer.allowed:
                self.admitted.append(self.loop.now)

        pending = gateway.batcher.ask(Check(CLIENT))
        if isinstance(pending, Answer):
            answered(pending)
        else:
            pending.add_done_callback(lambda future: answered(future.result()))

    def for_seconds(self, seconds: float, per_s: float) -> None:
        """Offer *per_s* checks a second, unevenly over the gateways and in bursts of up to three."""
        end = self.loop.now + seconds
        weights = [2.0**-number for number in range(len(self.gateways))]
        while self.loop.now < end:
            burst = self.random.choice((1, 1, 1, 3))
            [gateway] = self.random.choices(self.gateways, weights)
            for _ in range(burst):
                self.ask(gateway)
            self.loop.advance(self.random.expovariate(per_s / 1.5))

    @property
    def records_per_check(self) -> float:
        return self.log.checks / self.asked

    def verify(self) -> None:
        """No interval of any window admits more than the limit."""
        admitted = sorted(self.admitted)
        for limit in self.policy.limits:
            for first, at in enumerate(admitted):
                inside = bisect_left(admitted, at + limit.window_ms / 1_000) - first
                assert inside <= limit.max, (limit, at, inside)


def test_client_below_its_limit_needs_few_records() -> None:
    run = Run("1000/minute")
    run.for_seconds(180, 10)
    run.loop.advance(1)
    assert len(run.admitted) == run.asked
    assert run.records_per_check < 0.45
    run.verify()


def test_hot_client_needs_hardly_any_records() -> None:
    run = Run("100000/minute", gateways=1)
    run.for_seconds(60, 300)
    run.loop.advance(1)
    assert len(run.admitted) == run.asked
    assert run.records_per_check < 0.02
    assert sorted(run.waits)[int(0.99 * len(run.waits))] == 0
    run.verify()


@pytest.mark.parametrize("gateways", [1, 2])
def test_client_at_one_and_a_half_times_its_limit_gets_all_of_it(gateways: int) -> None:
    run = Run("1000/minute", gateways=gateways)
    run.for_seconds(60, 25)
    began, before = run.loop.now, len(run.admitted)
    run.for_seconds(180, 25)
    minutes = (run.loop.now - began) / 60
    assert (len(run.admitted) - before) / minutes >= 0.975 * 1_000
    assert run.records_per_check < 0.6
    run.verify()


def test_several_limits_are_kept() -> None:
    run = Run("3000/5m", "700/minute", "200/10s", seed=3)
    run.for_seconds(120, 20)
    run.verify()
    assert run.gateways[0].metrics.lease_hits > 100


def test_permits_are_accounted_for() -> None:
    run = Run("1000/minute")
    run.for_seconds(30, 15)
    for gateway in run.gateways:
        gateway.batcher.close()
        gateway.settle()
        metrics = gateway.metrics
        gone = metrics.lease_used + metrics.lease_returned + metrics.lease_expired
        assert metrics.lease_granted == gone
        assert metrics.received == metrics.allowed + metrics.rejected
    run.loop.advance(1)
    state = run.log.ledger.states[CLIENT]
    assert state.holds is None
    [window] = state.windows.values()
    assert window.total == len(run.admitted), "everything that was admitted is charged"


def test_dead_worker_leaves_exact_answers_until_the_leases_end() -> None:
    run = Run("100000/minute", gateways=1)
    run.for_seconds(20, 100)
    run.log.alive = False
    run.degraded = 0
    run.for_seconds(0.8, 100)
    assert run.degraded == 0
    run.for_seconds(4, 100)
    assert run.degraded > 0, "no lease lasts for ever"


def test_lowered_limit_is_obeyed_once_the_gateways_have_heard() -> None:
    run = Run("1000/minute")
    run.for_seconds(20, 10)
    admitted = len(run.admitted)
    update = Update(1, "client", CLIENT, "", parse_policy("10/minute"))
    run.log.append(encode_update(update))
    for gateway in run.gateways:
        gateway.hear(update)
    run.for_seconds(20, 10)
    assert len(run.admitted) == admitted


def test_cached_denial_ends_when_units_that_another_gateway_held_may_be_back() -> None:
    run = Run("40/minute", gateways=2)
    first, second = run.gateways
    for _ in range(10):
        run.ask(first)
        run.loop.advance(0.01)
    held = first.metrics.lease_granted
    assert held
    for _ in range(60):
        run.ask(second)
        run.loop.advance(0.005)
    before = len(run.admitted)
    run.ask(second)
    run.loop.advance(0.1)
    assert len(run.admitted) == before
    run.loop.advance(3)  # the first gateway has settled
    for _ in range(5):
        run.ask(second)
        run.loop.advance(0.1)
    assert len(run.admitted) > before
    run.verify()


def test_without_leases_nothing_changes() -> None:
    run = Run("1000/minute", max_ms=0)
    run.for_seconds(20, 10)
    assert run.records_per_check == 1
    assert run.gateways[0].metrics.lease_hits == 0


def test_answers_of_one_gateway_show_what_remains_whether_leases_or_the_log_give_them() -> None:
    """Without leases, each answer shows one less than the one before it. With them, callers see the same."""
    run = Run("1000/hour", gateways=1)
    [gateway] = run.gateways
    for number in range(1, 901):
        pending = gateway.batcher.ask(Check(CLIENT))
        run.loop.advance(0.01)
        answer = unwrap(pending)
        assert (answer.allowed, answer.limit, answer.remaining) == (True, 1_000, 1_000 - number)
        # Units that are held count for a window from the end of their lease, which is at most 10 s away.
        assert 3_600_000 <= answer.reset_after_ms <= 3_600_000 * 61 // 60 + 10_000
        assert (answer.retry_after_ms, answer.degraded, answer.reason) == (0, False, None)
    assert gateway.metrics.lease_hits > 800
    run.loop.advance(1.1)  # what is left of the lease before the last one goes back within a second
    assert gateway.metrics.leases == 1
    peek = gateway.batcher.ask(Check(CLIENT, 0))
    run.loop.advance(0.01)
    assert unwrap(peek).remaining == 100, "the permits that are left remain"


def test_bursts_of_costs_are_exact() -> None:
    run = Run("300/10s", gateways=1)
    [gateway] = run.gateways
    spent = 0
    for _ in range(400):
        cost = run.random.choice((1, 1, 1, 2, 5))
        pending = gateway.batcher.ask(Check(CLIENT, cost))
        run.loop.advance(0.008)
        answer = unwrap(pending)
        spent += cost * answer.allowed
        assert not answer.degraded
        assert spent <= 300
        if not answer.allowed:
            assert spent + cost > 300, "denied because of permits that its own gateway holds"
            break
    assert spent > 290


def run_until_ask(cost: int = 1) -> Run:
    """Return a gateway whose ask for its client's first lease is on its way to the log."""
    run = Run("1000/minute", gateways=1)
    [gateway] = run.gateways
    while True:
        run.loop.advance(0.05)
        gateway.batcher.ask(Check(CLIENT, cost))
        run.loop.turn()
        rows = gateway.last.hold_rows
        if rows and rows[0].ask is not None:
            return run


def whole_rest(run: Run) -> int:
    """Return the units that are left beside all checks so far, of which one has not arrived yet."""
    window = run.log.ledger.states[CLIENT].windows[60_000]
    return 1_000 - window.total - 1


def test_reservation_is_not_denied_because_its_gateway_is_getting_a_lease() -> None:
    run = run_until_ask()
    [gateway] = run.gateways
    call = HoldCall(Ask(RESERVATION, (1, 1 << 63, 0), 0, 0, 5_000), ())
    pending = gateway.batcher.hold(Check(CLIENT, whole_rest(run)), call)
    run.loop.advance(0.02)
    answer = unwrap(pending)
    assert (answer.allowed, answer.degraded) == (True, False)
    assert gateway.metrics.leases == 0, "what was granted meanwhile is not used"
    run.loop.advance(5.0)
    assert not [hold for hold in run.log.ledger.states[CLIENT].holds or () if hold.kind == LEASE]


def test_costly_check_is_not_denied_because_its_gateway_is_getting_a_lease() -> None:
    run = run_until_ask()
    [gateway] = run.gateways
    pending = gateway.batcher.ask(Check(CLIENT, whole_rest(run)))
    run.loop.advance(0.02)
    answer = unwrap(pending)
    assert (answer.allowed, answer.degraded) == (True, False)


def test_checks_of_the_usual_cost_do_not_prevent_a_lease() -> None:
    run = run_until_ask(cost=5)
    [gateway] = run.gateways
    gateway.batcher.ask(Check(CLIENT, 5))
    run.loop.advance(0.02)
    assert gateway.metrics.leases == 1
