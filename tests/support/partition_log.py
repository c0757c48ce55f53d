"""Random logs of one partition of ``checks``, as gateways, workers and other producers write them."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st
from stoplog_worker.verify.replay import Record

from stoplog.partitioning import partition_of
from stoplog.policy import UNLIMITED, parse_policy
from stoplog.wire.checks import (
    Batch,
    Check,
    Denials,
    Denied,
    SingleCheck,
    encode_batch,
    encode_denials,
    encode_settlements,
    encode_single,
    encode_update,
)
from stoplog.wire.format import ReplyTo
from stoplog.wire.holds import (
    CHARGE,
    LEASE,
    REFUND,
    RESERVATION,
    Ask,
    HoldRow,
    Settlement,
    SettlementBatch,
    SettlementRow,
)
from stoplog.wire.limit_updates import Signature, Update, enabling_update
from tests.support.relay import NEW, OLD, OTHER, authority

PARTITIONS = 2
CLIENTS = ("a", "ab", "zoë")
STRANGER = "alice"
PARTITION = partition_of(CLIENTS[0], PARTITIONS)
DEFAULT = parse_policy("6/minute")
START = 1_764_000_000_123

assert {partition_of(client, PARTITIONS) for client in CLIENTS} == {PARTITION}
assert partition_of(STRANGER, PARTITIONS) != PARTITION

_policies = st.sampled_from(
    [
        parse_policy("3/minute"),
        parse_policy(["10/hour", "4/10s"]),
        parse_policy("8/hour"),
        parse_policy("40/minute"),
        parse_policy(["100/hour", "30/10s"]),
        parse_policy("0/minute"),
        parse_policy("1 in flight"),
        parse_policy(["8/minute", "2 in flight"]),
        parse_policy(["5/minute", "refundable"]),
        parse_policy(["20/hour", "6/10s", "2 in flight", "refundable"]),
        UNLIMITED,
        None,
    ]
)
_checks = st.builds(
    Check,
    st.sampled_from((*CLIENTS[:1] * 6, *CLIENTS * 2, STRANGER)),
    st.integers(0, 4),
    st.sampled_from(("", "", "", "gold", "gold", "tin", "a\x00b")),
    st.sampled_from(("", "", "", "", "login", "login", "a\x00b")),
)
_batches = st.lists(_checks, min_size=1, max_size=5).map(
    lambda checks: encode_batch(Batch(0, incarnation=7, number=1, checks=checks))
)
_ids = st.tuples(st.sampled_from((7, 7, 8)), st.integers(0, 2), st.just(0))
_held_checks = st.builds(
    Check,
    st.sampled_from((*CLIENTS[:1] * 6, CLIENTS[1], STRANGER)),
    st.sampled_from((0, 1, 1, 2, 4)),
    st.sampled_from((*("",) * 8, "gold", "a\x00b")),
    st.sampled_from((*("",) * 8, "login", "a\x00b")),
)
_asks = st.builds(
    Ask,
    st.sampled_from((LEASE, LEASE, RESERVATION, RESERVATION, CHARGE, REFUND)),
    _ids,
    st.integers(0, 3),
    st.sampled_from((0, 4, 9, 30)),
    st.sampled_from((100, 600, 2_000, 30_000, 61_000)),
    st.lists(_ids, max_size=2).map(tuple),
)
_settlements = st.lists(st.builds(Settlement, _ids, st.integers(0, 6), st.booleans()), max_size=3).map(tuple)


@st.composite
def _held_batches(draw: st.DrawFn) -> bytes:
    checks = draw(st.lists(_held_checks, min_size=1, max_size=4))
    rows = [
        HoldRow(index, draw(_asks | st.none()), draw(_settlements))
        for index in range(len(checks))
        if draw(st.booleans())
    ]
    return encode_batch(Batch(0, 7, 1, checks, rows))


_settlement_batches = st.lists(
    st.builds(
        SettlementRow,
        st.sampled_from((*CLIENTS[:1] * 6, CLIENTS[1], STRANGER)),
        st.sampled_from(("", "", "", "login")),
        _settlements,
    ),
    min_size=1,
    max_size=4,
).map(lambda rows: encode_settlements(SettlementBatch(0, 7, 1, rows)))
_singles = _checks.map(lambda check: encode_single(SingleCheck(check, ReplyTo(0, "x"))))
_denials = st.builds(
    Denied, st.sampled_from(CLIENTS), st.just("gold"), st.just(""), st.just(9), st.just(9)
).map(lambda sum_: encode_denials(Denials(7, [sum_])))
_poison = st.sampled_from(
    [None, b"", b"{", b"\x01", b"\x02B", b"\xff" * 40, b'{"client_id": "a", "cost": -1}']
)
_updates = st.one_of(
    st.tuples(st.just("client"), st.sampled_from(CLIENTS), st.sampled_from(("", "login")), _policies),
    st.tuples(st.just("plan"), st.sampled_from(("gold", "tin")), st.sampled_from(("", "login")), _policies),
    st.tuples(st.just("default"), st.just(""), st.sampled_from(("", "login")), _policies),
    st.tuples(st.just("reset"), st.sampled_from(CLIENTS), st.sampled_from(("", "login")), st.none()),
)
_VALUES = {
    "batch": _batches,
    "single": _singles,
    "denials": _denials,
    "poison": _poison,
    "held": _held_batches(),
    "settle": _settlement_batches,
}
_version_steps = st.sampled_from((1, 1, 1, 3, 0, -1))
"""From one update's version to the next. 0: relayed twice; -1: an old update, relayed again."""

_stamp_steps = st.sampled_from((0, 1, 40, 1_000, 9_999, 10_167, 30_000, 61_000, 3_600_000, -5_000, -70_000))


_signers = st.sampled_from((None, None, None, "old", "new", "other", "forged"))
"""The signer of an update: no one, a worker with one of three keys, or someone who has none of them."""


def _signed(update: Update, signer: str | None) -> Update:
    if signer is None:
        return update
    if signer == "forged":
        return msgspec.structs.replace(update, signature=Signature("old", b"no mac"))
    return authority(OLD, NEW, OTHER).sign(update, signer)


@st.composite
def logs(draw: st.DrawFn, min_size: int = 8, max_size: int = 20) -> list[Record]:
    """Draw records in offset order, with gaps. The broker's clock goes back and forth.

    Some updates are signed. ``authority(OLD, NEW)`` accepts those that it can verify.
    In half of the logs, holds are enabled by some record, often the first.
    """
    offset, stamp, version = 0, START, 0
    records = []
    kinds = st.sampled_from((*("batch",) * 3, "single", *("update",) * 3, "denials", "poison"))
    held_kinds = st.sampled_from(("held", "held", "held", "settle"))
    enabled = draw(st.booleans())
    names = draw(st.lists(kinds | held_kinds if enabled else kinds, min_size=min_size, max_size=max_size))
    if enabled:
        first = draw(st.sampled_from((0, 0, 0, 3)))
        names[first:first] = ["enable", *draw(st.sampled_from(([], ["raise"], ["raise"])))]
    for kind in names:
        value: bytes | None
        if kind == "enable":
            value = encode_update(enabling_update())
        elif kind == "raise":
            version += 1
            value = encode_update(Update(version, "default", "", "", parse_policy("40/minute")))
        elif kind == "update":
            what, id_, resource, policy = draw(_updates)
            this = max(0, version + draw(_version_steps))
            version = max(version, this)
            update = Update(this, what, id_, resource, policy)
            value = encode_update(_signed(update, draw(_signers)))
        else:
            value = draw(_VALUES[kind])
        stamp += draw(_stamp_steps)
        records.append(Record(offset, stamp, value))
        offset += draw(st.sampled_from((1, 1, 1, 3)))
    return records
