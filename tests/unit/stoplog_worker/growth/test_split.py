"""Split partitions decide like partitions that were many from the beginning."""

from __future__ import annotations

import random

import msgspec
import pytest
from stoplog_worker.algorithm.fold import fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import PolicyChange, encode_history
from stoplog_worker.growth.grow import check_number
from stoplog_worker.growth.split import FILLER, FIRST_OFFSET, goes_to, new_partitions
from stoplog_worker.growth.states import policies_in, write_marker, write_policies, write_states
from stoplog_worker.state import store as state_store

from stoplog.errors import InvalidInput
from stoplog.partitioning import partition_of
from stoplog.policy import Policy, parse_policy
from stoplog.wire.checks import Batch, Check, decode_checks_record, encode_batch, encode_update
from stoplog.wire.holds import REFUND, REFUNDED_BEFORE, RESERVATION, Ask, HoldRow, Settlement
from stoplog.wire.limit_updates import ENABLE_HOLDS, Update, UpdateKey, enabling_update
from stoplog.wire.replies import Decision, HeldDecision
from tests.support.ledgers import FIRST_MARKER, NOW, checkpoint
from tests.support.memory_store import MemoryStore

CLIENTS = [f"client-{number}" for number in range(6)]
POLICIES = [
    parse_policy(limits)
    for limits in (
        ["3/minute"],
        ["5/10s", "8/hour", "refundable"],
        ["2 in flight", "6/minute"],
        ["4/minute", "refundable"],
    )
]


class Partitions:
    """Partitions without Kafka: each record is folded, and every record is followed by a checkpoint."""

    def __init__(self, number: int) -> None:
        self.first = number
        self.stores = [MemoryStore(partition) for partition in range(number)]
        self.ledgers = [Ledger(store, FIRST_MARKER) for store in self.stores]
        self.updates = dict.fromkeys(range(number), 0)
        """The next offset of each partition of ``limit-updates``."""
        for partition in range(number):
            self.fold(partition, encode_update(enabling_update()), NOW)

    def fold(self, partition: int, record: bytes, now_ms: int) -> list[object]:
        """Append *record* to the log of *partition*; return the answers."""
        ledger = self.ledgers[partition]
        fault = fault_finder(partition, len(self.ledgers))
        folded = fold(ledger, ledger.next_offset, now_ms, record, fault)
        assert not folded.refused
        checkpoint(ledger, self.stores[partition])
        return list(folded.answers)

    def check(self, check: Check, now_ms: int, row: HoldRow) -> object:
        """Decide *check*; return the answer without its version, which is an offset."""
        partition = partition_of(check.client, len(self.ledgers))
        [answer] = self.fold(partition, encode_batch(Batch(0, 1, 1, [check], [row])), now_ms)
        return msgspec.structs.replace(answer, policy_version=0) if isinstance(answer, Decision) else answer

    def update(self, key: UpdateKey, policy: Policy | None, order: int, now_ms: int) -> None:
        """Apply an update, in every partition if it concerns a plan or the default."""
        number = len(self.ledgers)
        shared = key.kind in ("plan", "default")
        for partition in range(number) if shared else [partition_of(key.id, number)]:
            version, self.updates[partition] = self.updates[partition], self.updates[partition] + 1
            update = Update(version, key.kind, key.id, key.resource, policy, order=order if shared else -1)
            self.fold(partition, encode_update(update), now_ms)

    def grow(self, number: int) -> None:
        """Split the partitions as the command does, with a list for each topic."""
        before = len(self.ledgers)
        new = {partition: MemoryStore(partition) for partition in range(before, number)}

        def write(table: str, partition: int, key: bytes, value: bytes) -> None:
            new[partition].write(table, [(key, value)])

        for store in self.stores:
            write_states(store, write, before, number)
            for partition in new_partitions(store.partition, before, number):
                in_force = policies_in(store)
                wanted = [
                    key
                    for key, change in in_force.items()
                    if change.policy is not None and goes_to(key, partition, number)
                ]
                versions = {key: offset for offset, key in enumerate(wanted)}
                write_policies(in_force, write, partition, versions)
                write_marker(store, write, partition, FIRST_OFFSET, len(wanted) - 1)
                self.updates[partition] = len(wanted)
        self.stores += [new[partition] for partition in sorted(new)]
        self.ledgers = []
        for store in self.stores:  # as workers that start
            marker = store.marker()
            assert marker is not None
            self.ledgers.append(Ledger(store, marker))


class Asked(msgspec.Struct, frozen=True):
    """One step: a check that may reserve and settle, a refund with one of a few ids, or an update."""

    client: str
    wait_ms: int
    cost: int
    plan: str
    resource: str
    reserve: bool
    settle: bool
    refund: int | None
    update: str
    policy: Policy | None


def random_steps(draw: random.Random) -> list[Asked]:
    """Return 60 steps of a few clients, whose policies change now and then."""
    return [
        Asked(
            draw.choice(CLIENTS),
            draw.randrange(3_000),
            draw.randrange(4),
            draw.choice(["", "gold"]),
            draw.choice(["", "", "login"]),
            draw.random() < 0.4,
            draw.random() < 0.4,
            draw.choice([None, None, 1, 2]),
            draw.choice(["", "", "", "", "client", "plan", "default", "reset"]),
            draw.choice([None, *POLICIES]),
        )
        for _ in range(60)
    ]


def refund(number: int, units: int) -> Ask:
    return Ask(REFUND, (2, number, 0), 1, units, 1)


def run(partitions: Partitions, asked: list[Asked], growth: dict[int, int]) -> list[object]:
    """Take the steps, and grow before some of them; return all answers."""
    now_ms, answers = NOW, []
    opened: dict[tuple[str, str], tuple[int, int, int]] = {}
    for number, step in enumerate(asked):
        if number in growth:
            partitions.grow(growth[number])
        now_ms += step.wait_ms
        if step.update:
            id_ = {"client": step.client, "reset": step.client, "plan": "gold", "default": ""}[step.update]
            policy = None if step.update == "reset" else step.policy
            partitions.update(UpdateKey(step.update, id_, step.resource), policy, number, now_ms)
            continue
        place = step.client, step.resource
        ask = Ask(RESERVATION, (1, number, 0), 0, 0, 20_000) if step.reserve else None
        settled = (Settlement(opened[place], 1),) if step.settle and place in opened else ()
        if ask is not None and step.refund is None:
            opened[place] = ask.id
        check = Check(step.client, step.cost, step.plan, step.resource)
        if step.refund is not None:
            ask, check = refund(step.refund, step.cost), msgspec.structs.replace(check, cost=0)
        answers.append(partitions.check(check, now_ms, HoldRow(0, ask, settled)))
    return answers


@pytest.mark.parametrize("seed", range(100))
def test_decisions_after_growing_equal_those_of_partitions_that_were_always_as_many(seed: int) -> None:
    draw = random.Random(seed)
    asked = random_steps(draw)
    growth = dict(zip(sorted(draw.sample(range(len(asked)), 3)), (2, 4, 16), strict=True))
    assert run(Partitions(1), asked, growth) == run(Partitions(16), asked, {})


def test_first_record_decides_nothing_and_what_moves_comes_before_it() -> None:
    partitions = Partitions(1)
    client = next(one for one in CLIENTS if partition_of(one, 2) == 1)
    partitions.check(Check(client, 40), NOW, HoldRow(0))
    partitions.grow(2)
    assert fold(Ledger(partitions.stores[1], FIRST_MARKER), 0, NOW, FILLER, fault_finder(1, 2)).answers == []
    assert decode_checks_record(FILLER) is not None
    answer = partitions.check(Check(client, 1), NOW, HoldRow(0))
    assert isinstance(answer, Decision)
    assert answer.remaining == 59


def test_refund_that_was_made_before_growing_is_known_afterwards() -> None:
    partitions = Partitions(1)
    client = next(one for one in CLIENTS if partition_of(one, 2) == 1)
    partitions.update(UpdateKey("client", client), POLICIES[3], 1, NOW)
    partitions.check(Check(client, 4), NOW, HoldRow(0))
    for reason in ("", REFUNDED_BEFORE):
        answer = partitions.check(Check(client, 0), NOW, HoldRow(0, refund(1, 3)))
        assert isinstance(answer, HeldDecision)
        assert (answer.reason, answer.remaining) == (reason, 3)
        if not reason:
            partitions.grow(2)


@pytest.mark.parametrize(
    ("before", "after", "remedy"), [(4, 6, "use 8:"), (4, 10, "use 8 or 12:"), (4, 2, "use 8:")]
)
def test_number_that_splits_nothing_is_refused_with_the_nearest_ones(
    before: int, after: int, remedy: str
) -> None:
    with pytest.raises(InvalidInput, match=remedy):
        check_number(before, after)


def test_policies_under_foreign_keys_are_left_out() -> None:
    partitions, key = Partitions(1), UpdateKey("plan", "gold")
    partitions.update(key, POLICIES[0], 5, NOW)
    [store] = partitions.stores
    known = policies_in(store)
    assert known.keys() == {key, ENABLE_HOLDS}
    history = encode_history([PolicyChange(0, 1, POLICIES[1])], 0)
    for foreign in (b"\xff\0gold\0", b"plan", b"plan\0gold\0login\0", b"nobody\0gold\0"):
        store.write(state_store.POLICIES, [(foreign, history)])
    assert policies_in(store) == known


def test_older_update_of_a_plan_stays_without_effect_after_growing() -> None:
    partitions, key = Partitions(1), UpdateKey("plan", "gold")
    partitions.update(key, parse_policy("9/minute"), 5, NOW)
    partitions.grow(2)
    partitions.update(key, parse_policy("4/minute"), 3, NOW)  # it reaches the new partition late
    for client in CLIENTS:
        answer = partitions.check(Check(client, 1, "gold"), NOW, HoldRow(0))
        assert isinstance(answer, Decision)
        assert answer.limit == 9
