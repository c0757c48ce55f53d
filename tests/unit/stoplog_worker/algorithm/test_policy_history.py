"""The policy that applies to a check at its position in the log."""

from __future__ import annotations

import msgspec
import pytest
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import (
    BUILT_IN,
    State,
)
from stoplog_worker.state.store import POLICIES

from stoplog.policy import UNLIMITED, Limit, Policy, parse_policy
from stoplog.wire.checks import Check
from stoplog.wire.limit_updates import Update, UpdateKey
from tests.support.ledgers import DEFAULT, FIRST_MARKER, NOW, at, checkpoint, fresh, resolved
from tests.support.memory_store import MemoryStore


def test_resolve_follows_order_of_policies() -> None:
    ledger = fresh()
    check = Check("a", 1, "gold", "login")
    order = [
        UpdateKey("client", "a", "login"),
        UpdateKey("plan", "gold", "login"),
        UpdateKey("default", "", "login"),
        UpdateKey("client", "a", ""),
        UpdateKey("plan", "gold", ""),
        UpdateKey("default", "", ""),
    ]
    assert resolved(ledger, check, 0) == (DEFAULT, BUILT_IN)
    for version, key in enumerate(reversed(order)):
        policy = parse_policy(f"{version}/minute")
        assert ledger.apply(Update(version, key.kind, key.id, key.resource, policy), at(version))
        assert resolved(ledger, check, version + 1) == (policy, version)
    plain = Check("a", 1, "gold")
    assert resolved(ledger, plain, 9)[1] == 2  # the client's own, without a resource
    assert resolved(ledger, Check("b"), 9)[1] == 0
    for step, key in enumerate(order):
        assert ledger.apply(Update(10 + step, key.kind, key.id, key.resource, None), at(20 + step))
        left = 4 - step
        assert resolved(ledger, check, 30)[1] == (left if left >= 0 else BUILT_IN)


def test_plan_that_states_limits_needs_no_policy_and_yields_to_those_of_the_client() -> None:
    ledger = fresh()
    stated, check = parse_policy(["5/minute", "9/day"]), Check("a", 1, "=9/day,5/minute", "login")
    assert resolved(ledger, check, 0) == (stated, BUILT_IN)
    assert ledger.policies.source_of(check, at(0)) == UpdateKey("plan", check.plan)
    for malformed in ("=5", "=", "=2 in flight", "=5/minute,4/minute"):
        assert resolved(ledger, Check("a", 1, malformed), 0) == (DEFAULT, BUILT_IN)
        assert ledger.policies.source_of(Check("a", 1, malformed), at(0)) is None
    for version, (kind, id_, resource, decides) in enumerate(
        [
            ("default", "", "", False),
            ("plan", check.plan, "", True),
            ("client", "a", "", True),
            ("default", "", "login", True),
            ("client", "a", "login", True),
        ]
    ):
        policy = parse_policy(f"{version}/hour")
        assert ledger.apply(Update(version, kind, id_, resource, policy), at(version))
        found = resolved(ledger, check, version + 1)
        assert found == ((policy, version) if decides else (stated, BUILT_IN))


def test_policy_of_many_clients_is_taken_apart_once_in_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, taken = fresh(), list[Policy]()
    ledger.apply(Update(0, "plan", "gold", "", parse_policy("5/minute")), at(0))

    def windows(policy: Policy) -> tuple[Limit, ...]:
        taken.append(policy)
        return policy.limits

    monkeypatch.setattr(Policy, "windows", property(windows))
    for number in range(10):
        for plan in ("", "gold"):
            ledger.policies.resolve(State(), Check(f"client-{number}", 1, plan), at(1))
    assert taken == [parse_policy("5/minute")]
    ledger.policies.begin_epoch()
    ledger.policies.resolve(State(), Check("a", 1, "gold"), at(1))
    assert len(taken) == 2


def test_resolve_uses_policy_in_force_at_position() -> None:
    ledger = fresh()
    policies = [parse_policy("1/minute"), None, UNLIMITED, parse_policy("2/hour")]
    for version, policy in enumerate(policies):
        ledger.apply(Update(version, "client", "a", "", policy), at(10 * version + 5))
    expected = [(DEFAULT, BUILT_IN), (policies[0], 0), (DEFAULT, BUILT_IN), (UNLIMITED, 2), (policies[3], 3)]
    assert [resolved(ledger, Check("a"), offset) for offset in (0, 10, 20, 30, 40)] == expected


def test_resolve_policies_ahead_of_marker_apply_from_their_position() -> None:
    store = MemoryStore()
    ledger = Ledger(store, FIRST_MARKER)
    for offset in range(6):
        ledger.advance(offset, NOW)
        ledger.apply(Update(offset, "plan", "gold", "", parse_policy(f"{offset}/minute")), at(offset))
    _, entries = ledger.take_dirty()
    store.write(POLICIES, entries.policies)  # a crash before the marker was written
    again = Ledger(store, FIRST_MARKER)
    for offset in range(6):
        assert resolved(again, Check("a", 1, "gold"), offset)[1] == offset
        assert again.apply(Update(offset, "plan", "gold", "", UNLIMITED), at(offset)), "a new epoch begins"
    assert resolved(again, Check("a", 1, "gold"), 9) == (parse_policy("5/minute"), 5)


def test_policy_history_before_marker_is_dropped() -> None:
    store = MemoryStore()
    ledger = Ledger(store, FIRST_MARKER)
    for offset in range(20):
        ledger.advance(offset, NOW)
        ledger.apply(Update(offset, "client", "a", "", parse_policy(f"{offset}/minute")), at(offset))
        if offset % 5 == 4:
            checkpoint(ledger, store)
    sizes = {len(value) for _, value in store.items(POLICIES)}
    assert max(sizes) < 200
    again = Ledger(store, ledger.checkpointed)
    assert resolved(again, Check("a"), 20)[1] == 19


@pytest.mark.parametrize("kind", ["client", "plan", "default", "reset"])
def test_apply_repeated_update_changes_nothing(kind: str) -> None:
    ledger = fresh()
    update = Update(7, kind, "" if kind == "default" else "a", "", DEFAULT if kind != "reset" else None)
    assert ledger.apply(update, at(1))
    epoch = ledger.policies.epoch
    assert not ledger.apply(update, at(2))
    assert not ledger.apply(Update(6, kind, update.id, "", UNLIMITED), at(3))
    assert (ledger.applied, ledger.policies.epoch) == (7, epoch)
    assert resolved(ledger, Check("a", 1, "a"), 9)[0] == DEFAULT


def test_apply_plan_updates_in_either_order_keeps_later_order() -> None:
    slow, fast = parse_policy("1/minute"), parse_policy("9/minute")
    first = Update(0, "plan", "gold", "", slow, order=10)
    second = Update(1, "plan", "gold", "", fast, order=11)
    for one, other in ((first, second), (second, first)):
        ledger = fresh()
        for version, update in enumerate((one, other)):
            assert ledger.apply(msgspec.structs.replace(update, version=version), at(version))
        policy, _ = resolved(ledger, Check("a", plan="gold"), 5)
        assert policy == fast


def test_replay_from_the_marker_knows_what_an_update_replaced() -> None:
    store = MemoryStore()
    ledger = Ledger(store, FIRST_MARKER)
    updates = [
        Update(offset, "plan", "gold", "", parse_policy(f"{offset + 1}/minute")) for offset in range(4)
    ]
    for offset, update in enumerate(updates):
        if offset == 2:
            checkpoint(ledger, store)
        ledger.advance(offset, NOW)
        effect = ledger.apply(update, at(offset))
        assert effect is not None
        assert (effect.previous and effect.previous.version) == (offset - 1 if offset else None)
    # The policies of a checkpoint are stored, its marker is not.
    store.write(POLICIES, ledger.take_dirty()[1].policies)
    again = Ledger(store, ledger.checkpointed)
    for offset in (2, 3):
        again.advance(offset, NOW)
        effect = again.apply(updates[offset], at(offset))
        assert effect is not None
        assert effect.existed
        assert effect.previous is not None
        assert (effect.previous.version, effect.previous.policy) == (offset - 1, updates[offset - 1].policy)
