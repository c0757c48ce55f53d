"""Authority over limits: signed, unsigned and forged updates, each in its place of the log."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stoplog_worker.algorithm.fold import Folded, fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.update_authority import (
    FORGED,
    IMPOSSIBLE,
    MAX_VERSION_STEP,
    UNKNOWN_KEY,
    UNSIGNED,
    WITHOUT_KEYS,
    UpdateAuthority,
)
from stoplog_worker.verify.replay import NothingStored

from stoplog.policy import UNLIMITED, parse_policy
from stoplog.wire.checks import Check, encode_update
from stoplog.wire.format import ReplyTo
from stoplog.wire.limit_updates import Signature, Update
from tests.support.ledgers import FIRST_MARKER, resolved
from tests.support.partition_log import CLIENTS, PARTITION, PARTITIONS, START
from tests.support.relay import NEW, OLD, OTHER, authority

A = CLIENTS[0]
FIVE, SIX = parse_policy("5/minute"), parse_policy("6/minute")
FAULT = fault_finder(PARTITION, PARTITIONS)


class Log:
    """A partition's log, as a worker folds it."""

    def __init__(self, authority: UpdateAuthority) -> None:
        self.ledger = Ledger(NothingStored(), FIRST_MARKER)
        self.authority = authority

    def append(self, update: Update) -> Folded:
        offset = self.ledger.next_offset
        return fold(self.ledger, offset, START, encode_update(update), FAULT, self.authority)

    def refusal(self, update: Update) -> str | None:
        """Append *update*; return why it was refused, or ``None``."""
        folded = self.append(update)
        assert (folded.record is None) == (folded.refusal is not None) == bool(folded.refused)
        return folded.refusal.kind if folded.refusal is not None else None

    @property
    def in_force(self) -> tuple[object, int]:
        return resolved(self.ledger, Check(A), self.ledger.next_offset)


def update(version: int, policy: object = FIVE) -> Update:
    return Update(version, "client", A, "", policy)  # type: ignore[arg-type]


def test_forged_version_is_impossible_and_later_changes_still_apply() -> None:
    log = Log(WITHOUT_KEYS)
    assert log.refusal(update(3)) is None
    assert log.refusal(update(2**62, UNLIMITED)) == IMPOSSIBLE
    assert log.in_force == (FIVE, 3)
    assert log.refusal(update(4, SIX)) is None
    assert log.in_force == (SIX, 4)


@pytest.mark.parametrize(("applied", "step", "refused"), [(-1, 0, None), (7, 0, None), (7, 1, IMPOSSIBLE)])
def test_bound_of_versions_follows_the_log_alone(applied: int, step: int, refused: str | None) -> None:
    log = Log(WITHOUT_KEYS)
    log.ledger.applied = applied
    assert log.refusal(update(applied + MAX_VERSION_STEP + step)) == refused


def test_unsigned_updates_are_accepted_before_the_first_signed_one_and_refused_after_it() -> None:
    signer = authority(OLD)
    log = Log(authority(OLD))
    assert log.refusal(update(0)) is None
    assert log.ledger.marker.signed_from == -1
    assert log.refusal(signer.sign(update(1), "old")) is None
    assert log.ledger.marker.signed_from == 1
    assert log.refusal(update(2, UNLIMITED)) == UNSIGNED
    assert log.in_force == (FIVE, 1)
    assert log.refusal(signer.sign(update(2, SIX), "old")) is None
    assert log.in_force == (SIX, 2)
    assert log.ledger.marker.signed_from == 1, "it is the first"


def test_repeated_signed_update_also_ends_unsigned_ones() -> None:
    log = Log(authority(OLD))
    assert log.refusal(update(5)) is None
    folded = log.append(authority(OLD).sign(update(5), "old"))
    assert (folded.effect, folded.refusal) == (None, None)
    assert log.refusal(update(6)) == UNSIGNED


def test_marker_carries_the_first_signed_update_to_the_next_owner() -> None:
    log = Log(authority(OLD))
    log.append(authority(OLD).sign(update(0), "old"))
    next_owner = Log(authority(OLD))
    next_owner.ledger = Ledger(NothingStored(), log.ledger.marker)
    assert next_owner.refusal(update(1)) == UNSIGNED


def test_unknown_key_is_refused_and_the_fold_goes_on() -> None:
    log = Log(authority(OLD))
    assert log.refusal(authority(OTHER).sign(update(0, UNLIMITED), "other")) == UNKNOWN_KEY
    assert log.ledger.signed_from == -1
    assert log.refusal(update(0)) is None
    without = Log(WITHOUT_KEYS)
    assert without.refusal(authority(OLD).sign(update(0), "old")) == UNKNOWN_KEY


@pytest.mark.parametrize(
    "elsewhere",
    [
        authority(OLD, partition=PARTITION + 1),
        authority(OLD, topic_id="checks-2"),
        authority(OLD, updates_id="updates-2"),
    ],
    ids=["partition", "checks created again", "limit-updates created again"],
)
def test_update_copied_from_elsewhere_is_forged(elsewhere: UpdateAuthority) -> None:
    log = Log(authority(OLD, partition=PARTITION))
    assert log.refusal(elsewhere.sign(update(0, UNLIMITED), "old")) == FORGED
    assert log.in_force == (FIRST_MARKER.default, -1)
    assert log.ledger.signed_from == -1


_changed = st.sampled_from(
    [
        {"version": 4},
        {"kind": "plan"},
        {"id": CLIENTS[1]},
        {"resource": "login"},
        {"policy": UNLIMITED},
        {"policy": None},
        {"reply_to": ReplyTo(0, "x")},
        {"order": 3},
        {"signature": Signature("old", b"")},
        {"signature": Signature("old", bytes(32))},
    ]
)


@given(_changed)
def test_any_changed_field_makes_an_update_forged(changed: dict[str, object]) -> None:
    signed = authority(OLD, NEW).sign(update(3), "old")
    altered = msgspec.structs.replace(signed, **changed)
    refusal = authority(OLD, NEW).refusal(altered, -1, signed_before=True)
    assert refusal is not None
    assert refusal.kind == FORGED


def test_signature_of_one_key_is_not_valid_under_the_id_of_another() -> None:
    signed = authority(OLD, NEW).sign(update(3), "old")
    assert signed.signature is not None
    renamed = msgspec.structs.replace(signed, signature=Signature("new", signed.signature.mac))
    refusal = authority(OLD, NEW).refusal(renamed, -1, signed_before=True)
    assert refusal is not None
    assert refusal.kind == FORGED


def test_signature_is_deterministic_and_both_keys_are_accepted_during_a_rotation() -> None:
    one, other = authority(OLD, NEW), authority(NEW, OLD)
    for key_id in ("old", "new"):
        assert one.sign(update(3), key_id) == other.sign(update(3), key_id)
        assert one.refusal(other.sign(update(3), key_id), -1, signed_before=True) is None


def test_version_of_a_signed_update_is_not_bounded() -> None:
    log = Log(authority(OLD))
    assert log.refusal(authority(OLD).sign(update(2**62), "old")) is None
