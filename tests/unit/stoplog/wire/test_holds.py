"""Records and replies of format version 2: their bytes, and what is refused."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoplog.errors import UndecodableRecord
from stoplog.policy import MAX_COST, UNLIMITED
from stoplog.wire.checks import (
    HEADER,
    MAX_BATCH,
    Batch,
    Check,
    decode_checks_record,
    encode_batch,
    encode_settlements,
    encode_update,
    reply_address,
)
from stoplog.wire.format import KIND_BATCH
from stoplog.wire.holds import (
    HOLDS_VERSION,
    KIND_SETTLEMENTS,
    LEASE,
    MAX_LEASES,
    MAX_TTL_MS,
    RESERVATION,
    Ask,
    Grant,
    HoldRow,
    Settlement,
    SettlementBatch,
    SettlementRow,
)
from stoplog.wire.limit_updates import ENABLE_HOLDS, Update, decode_update, enabling_update, encode_update_key
from stoplog.wire.replies import (
    Decision,
    HeldDecision,
    Reply,
    SettlementReply,
    decode_any_reply,
    decode_held_reply,
    decode_reply,
    encode_held_reply,
)

INCARNATION = 0x1122334455667788
FIRST, SECOND = (INCARNATION, 6, 0), (INCARNATION, 7, 1)

BATCH = Batch(
    2,
    INCARNATION,
    7,
    [Check("alice"), Check("bob", 5, "gold", "login"), Check("zoe", 300)],
    [
        HoldRow(0, None, (Settlement(FIRST, 3),)),
        HoldRow(1, Ask(LEASE, SECOND, 12, 40, 3_000, (FIRST,)), (Settlement(FIRST, 2, True),)),
        HoldRow(2, Ask(RESERVATION, (7, 8, 2), 0, 0, 60_000)),
    ],
)
BATCH_BYTES = bytes.fromhex(
    "02 42 00000002 1122334455667788 0000000000000007"  # version, B, reply partition, incarnation, number
    "92 93"  # checks and rows; three checks
    "94 a5616c696365 01 a0 a0"
    "94 a3626f62 05 a4676f6c64 a56c6f67696e"
    "94 a37a6f65 cd012c a0 a0"
    "93"  # three rows
    "93 00 c0 91 93 93 cf1122334455667788 06 00 03 c2"  # settles the hold 6/0: 3 used
    "93 01 96 00 93 cf1122334455667788 07 01 0c 28 cd0bb8"  # asks for a lease: number 12, 40 units, 3 s
    "91 93 cf1122334455667788 06 00"  # keeps the hold 6/0
    "91 93 93 cf1122334455667788 06 00 02 c3"  # settles a part of it: 2 used
    "93 02 96 01 93 07 08 02 00 00 cdea60 90 90"  # asks for a reservation of a minute
)
SETTLEMENTS = SettlementBatch(
    -1, INCARNATION, 9, [SettlementRow("alice", "login", (Settlement(FIRST, 3), Settlement(SECOND, 0)))]
)
SETTLEMENTS_BYTES = bytes.fromhex(
    "02 53 ffffffff 1122334455667788 0000000000000009"  # version, S, no reply, incarnation, number
    "91 93 a5616c696365 a56c6f67696e 92"  # one row: alice, login, two settlements
    "93 93 cf1122334455667788 06 00 03 c2"
    "93 93 cf1122334455667788 07 01 00 c2"
)
REPLY = Reply(
    INCARNATION,
    7,
    4_000,
    41,
    [
        HeldDecision(True, 100, 99, 60_000, 0, 41),
        HeldDecision(True, 100, 59, 60_000, 0, 41, 0, Grant(40, 3_000), (-1, 7)),
        HeldDecision(False, 10, 0, 900, 900, -1, 250),
        HeldDecision(False, 10, 0, 900, None, -1, None, None, (), "no"),
        None,
        "unfit",
    ],
)
REPLY_BYTES = bytes.fromhex(
    "02 42 1122334455667788 0000000000000007"  # version, B, incarnation, number
    "0000000000000fa0 0000000000000029"  # offset, applied
    "96"
    "96 c3 64 63 cdea60 00 29"  # nothing is held: the fields of version 1
    "9a c3 64 3b cdea60 00 29 00 92 28 cd0bb8 92 ff 07 a0"  # a lease of 40 for 3 s; two settlements
    "9a c2 0a 00 cd0384 cd0384 ff ccfa c0 90 a0"  # denied for 900 ms; without the holds for 250 ms
    "9a c2 0a 00 cd0384 c0 ff c0 c0 90 a26e6f"
    "c0 a5756e666974"
)
SETTLEMENT_REPLY = SettlementReply(INCARNATION, 9, 4_000, 41, [(-1, -2, 7), None, "unfit"])
SETTLEMENT_REPLY_BYTES = bytes.fromhex(
    "02 53 1122334455667788 0000000000000009 0000000000000fa0 000000000000002993 93 ff fe 07 c0 a5756e666974"
)


def test_records_with_holds_have_golden_bytes() -> None:
    assert encode_batch(BATCH) == BATCH_BYTES
    assert decode_checks_record(BATCH_BYTES) == BATCH
    assert encode_settlements(SETTLEMENTS) == SETTLEMENTS_BYTES
    assert decode_checks_record(SETTLEMENTS_BYTES) == SETTLEMENTS
    assert reply_address(BATCH_BYTES) == (2, INCARNATION, 7)
    assert reply_address(SETTLEMENTS_BYTES) is None


def test_replies_with_holds_have_golden_bytes() -> None:
    plain = msgspec.structs.replace(
        REPLY, answers=[Decision(True, 100, 99, 60_000, 0, 41), *REPLY.answers[1:]]
    )
    assert encode_held_reply(plain) == REPLY_BYTES
    assert decode_held_reply(REPLY_BYTES) == decode_any_reply(REPLY_BYTES) == REPLY
    assert encode_held_reply(SETTLEMENT_REPLY) == SETTLEMENT_REPLY_BYTES
    assert decode_held_reply(SETTLEMENT_REPLY_BYTES) == SETTLEMENT_REPLY
    for value in (REPLY_BYTES, SETTLEMENT_REPLY_BYTES):
        with pytest.raises(UndecodableRecord, match="upgrade the gateway"):
            decode_reply(value)


def test_update_that_enables_holds_is_in_checks_only() -> None:
    update = enabling_update()
    assert decode_checks_record(encode_update(update)) == update
    with pytest.raises(UndecodableRecord, match="unknown kind"):
        decode_update(7, encode_update_key(ENABLE_HOLDS), None, None)
    with pytest.raises(UndecodableRecord, match="unknown kind"):
        decode_checks_record(encode_update(Update(0, "enable", "other", "", UNLIMITED)))


def refused(value: bytes) -> str:
    with pytest.raises(UndecodableRecord) as caught:
        decode_checks_record(value)
    return caught.value.reason


@pytest.mark.parametrize(
    "row",
    [
        HoldRow(0, Ask(4, FIRST, 1, 4, 3_000)),  # type: ignore[arg-type]
        HoldRow(0, Ask(LEASE, FIRST, -1, 4, 3_000)),
        HoldRow(0, Ask(LEASE, FIRST, 1, MAX_COST + 1, 3_000)),
        HoldRow(0, Ask(LEASE, FIRST, 1, 4, 0)),
        HoldRow(0, Ask(LEASE, FIRST, 1, 4, MAX_TTL_MS + 1)),
        HoldRow(0, Ask(LEASE, (1, -1, 0), 1, 4, 3_000)),
        HoldRow(0, Ask(LEASE, FIRST, 1, 4, 3_000, (FIRST,) * (MAX_LEASES + 1))),
        HoldRow(0, None, (Settlement(FIRST, -1),)),
        HoldRow(0, None, (Settlement(FIRST, MAX_COST + 1),)),
        HoldRow(-1),
    ],
)
def test_row_out_of_bounds_is_refused(row: HoldRow) -> None:
    assert "not a check" in refused(encode_batch(Batch(0, 1, 1, [Check("a")], [row])))


@pytest.mark.parametrize("indexes", [(1,), (0, 0), (1, 0)])
def test_rows_that_do_not_follow_the_checks_are_refused(indexes: tuple[int, ...]) -> None:
    checks = [Check("a")] * len(indexes)
    rows = [HoldRow(index) for index in indexes]
    assert "in the order of the checks" in refused(encode_batch(Batch(0, 1, 1, checks, rows)))


def test_records_with_too_many_rows_or_costs_are_refused() -> None:
    checks = [Check("a")] * (MAX_BATCH + 1)
    assert "10001" in refused(encode_batch(Batch(0, 1, 1, checks, [])))
    rows = [SettlementRow("a", "", ())] * (MAX_BATCH + 1)
    assert "10001" in refused(encode_settlements(SettlementBatch(0, 1, 1, rows)))
    assert "out of bounds" in refused(encode_batch(Batch(0, 1, 1, [Check("a", MAX_COST + 1)], [])))
    assert "kind 68" in refused(HEADER.pack(HOLDS_VERSION, ord("D"), 0, 1, 1) + b"\x90")


def test_every_truncation_of_a_record_with_holds_is_refused() -> None:
    for value in (BATCH_BYTES, SETTLEMENTS_BYTES):
        for length in range(1, len(value)):
            refused(value[:length])
    for value in (REPLY_BYTES, SETTLEMENT_REPLY_BYTES):
        for length in range(len(value)):
            with pytest.raises(UndecodableRecord):
                decode_any_reply(value[:length])


@given(st.sampled_from((KIND_BATCH, KIND_SETTLEMENTS)), st.binary(max_size=100))
@settings(max_examples=300)
def test_random_bodies_with_holds_raise_nothing_but_undecodable_record(kind: int, body: bytes) -> None:
    for value in (HEADER.pack(HOLDS_VERSION, kind, 0, 1, 1) + body, bytes((HOLDS_VERSION, kind)) + body):
        with suppress(UndecodableRecord):
            decode_checks_record(value)
        with suppress(UndecodableRecord):
            decode_any_reply(value)


@pytest.mark.parametrize("grant", [Grant(2**40, 3_000), Grant(-1, 3_000), Grant(40, 2**40), Grant(40, -1)])
def test_reply_with_a_grant_beyond_the_bounds_is_refused(grant: Grant) -> None:
    decision = HeldDecision(True, 100, 59, 60_000, 0, 41, 0, grant)
    with pytest.raises(UndecodableRecord):
        decode_any_reply(encode_held_reply(msgspec.structs.replace(REPLY, answers=[decision])))
