from __future__ import annotations

from contextlib import suppress
from time import perf_counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoplog.errors import UndecodableRecord
from stoplog.policy import MAX_COST, Limit, Policy, parse_policy
from stoplog.wire.checks import (
    HEADER,
    KIND_UPDATE,
    MAX_BATCH,
    Batch,
    Check,
    Denials,
    Denied,
    SingleCheck,
    decode_checks_record,
    encode_batch,
    encode_denials,
    encode_single,
    encode_update,
    reply_address,
)
from stoplog.wire.format import KIND_BATCH, MAX_RECORD, NO_REPLY, VERSION, ReplyTo
from stoplog.wire.heartbeats import decode_heartbeat
from stoplog.wire.limit_updates import (
    KINDS,
    Update,
    decode_update,
)
from stoplog.wire.replies import (
    Decision,
    Reply,
    decode_reply,
    encode_reply,
    reply_incarnation,
)

HEAD = HEADER.pack(VERSION, KIND_BATCH, 2, 77, 5)
GOOD = Batch(2, 77, 5, [Check("alice", 1, "gold", "login"), Check("zoë")])


def refused(value: bytes | None) -> str:
    """Return the reason of a refusal, which is quick and short enough for a header."""
    began = perf_counter()
    with pytest.raises(UndecodableRecord) as caught:
        decode_checks_record(value)
    assert perf_counter() - began < 1.0
    caught.value.reason.encode()
    assert len(caught.value.reason) < 1_000
    return caught.value.reason


@pytest.mark.parametrize(("checks", "cost"), [(0, 1), (-1, 1), (1, -1), (2**53 + 1, 1)])
def test_denials_with_impossible_counts_are_refused(checks: int, cost: int) -> None:
    assert "Expected `int`" in refused(encode_denials(Denials(77, [Denied("alice", "", "", checks, cost)])))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_random_bytes_raise_nothing_but_undecodable_record(value: bytes) -> None:
    for read in (decode_checks_record, decode_reply, decode_heartbeat):
        with suppress(UndecodableRecord):
            read(value)
    reply_address(value)
    reply_incarnation(value)


@given(
    st.sampled_from([HEAD, HEADER.pack(VERSION, KIND_UPDATE, -1, 0, 1), b"{", b'{"client_id":']), st.binary()
)
@settings(max_examples=300)
def test_random_bodies_raise_nothing_but_undecodable_record(head: bytes, body: bytes) -> None:
    try:
        decode_checks_record(head + body)
    except UndecodableRecord as error:
        error.reason.encode()


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=20))
def test_random_updates_raise_nothing_but_undecodable_record(key: bytes, value: bytes, header: bytes) -> None:
    for a, b in ((key, value), (b'["client","a",""]', value), (key, None), (b"[" + key, b"{" + value)):
        try:
            decode_update(1, a, b, [("reply-to", header)])
        except UndecodableRecord as error:
            error.reason.encode()


@pytest.mark.parametrize(
    "value",
    [
        encode_batch(GOOD),
        encode_update(Update(7, "client", "alice", "login", parse_policy("5/minute"), ReplyTo(1, "r"))),
        encode_single(SingleCheck(Check("alice", 2, "gold", "login"), ReplyTo(1, "r"))),
    ],
)
def test_every_truncation_of_a_checks_record_is_refused(value: bytes) -> None:
    for length in range(len(value)):
        refused(value[:length])


def test_every_truncation_of_a_reply_is_refused() -> None:
    value = encode_reply(Reply(1, 2, 3, 4, [Decision(True, 1, 1, 1, 0, 1), None, "no"]))
    for length in range(len(value)):
        with pytest.raises(UndecodableRecord):
            decode_reply(value[:length])


DEEP = 100_000
BOMBS = {
    "nested": b"\x91" * DEEP,
    "nested where more fields may stand": b"\x91\x95\xa1a\x01\xa0\xa0" + b"\x91" * DEEP,
    "nested maps": b"\x91\x95\xa1a\x01\xa0\xa0" + b"\x81\xa1a" * DEEP,
    "list of 4 billion": b"\xdd\xff\xff\xff\xff",
    "list of 4 billion, some there": b"\xdd\xff\xff\xff\xff" + b"\x91\xa1a" * 1_000,
    "map of 4 billion": b"\x91\xdf\xff\xff\xff\xff",
    "4 billion more fields": b"\x91\xdd\xff\xff\xff\xff\xa1a",
    "text of 4 gigabytes": b"\x91\x91\xdb\xff\xff\xff\xff",
    "bytes of 4 gigabytes": b"\x91\x91\xc6\xff\xff\xff\xff",
    "extension": b"\x91\x91\xc9\xff\xff\xff\xff\x01",
    "not UTF-8": b"\x91\x91\xa1\xff",
    "a surrogate": b"\x91\x91\xa3\xed\xa0\x80",
    "no fields": b"\x91\x90",
    "null": b"\xc0",
    "nothing": b"",
    "something after": b"\x90\x90",
}


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("kind", [KIND_BATCH, KIND_UPDATE])
def test_msgpack_bomb_in_checks_is_refused_quickly(body: bytes, kind: int) -> None:
    refused(HEADER.pack(VERSION, kind, 0, 1, 1) + body)


@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
def test_msgpack_bomb_in_a_reply_is_refused(body: bytes) -> None:
    value = bytearray(encode_reply(Reply(1, 2, 3, 4, []))[:-1] + body)
    with pytest.raises(UndecodableRecord):
        decode_reply(bytes(value))


@pytest.mark.parametrize(
    "value",
    [
        b"{",
        b"{}",
        b"{" * DEEP,
        b'{"client_id": ' + b"[" * DEEP,
        b'{"client_id": "a", "cost": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"reply_to": ' + b'{"partition": ' * DEEP,
        b'{"client_id": "a", "cost": ' + b"9" * DEEP + b"}",
        b'{"client_id": "a", "cost": 1e999}',
        b'{"client_id": "a", "cost": 1.5}',
        b'{"client_id": "a", "cost": -1}',
        b'{"client_id": "a", "cost": 1000001}',
        b'{"client_id": "a", "cost": true}',
        b'{"client_id": "a", "cost": "1"}',
        b'{"client_id": "a", "cost": null}',
        b'{"client_id": 7}',
        b'{"client_id": null}',
        b'{"client_id": ""}',
        b'{"client_id": "a\\u0000"}',
        b'{"client_id": "' + b"x" * 257 + b'"}',
        b'{"client_id": "a", "plan": ""}',
        b'{"client_id": "a", "resource": "\\n"}',
        b'{"client_id": "a", "more": 1}',
        b'{"client_id": "a", "reply_to": {"partition": 1}}',
        b'{"client_id": "a", "reply_to": {"partition": "1", "id": "x"}}',
        b'{"client_id": "a"} trailing',
        b'{"client_id": "\xff"}',
        b'{"client_id": "\xed\xa0\x80"}',
    ],
)
def test_json_that_is_no_valid_check_is_refused(value: bytes) -> None:
    refused(value)


@pytest.mark.parametrize(
    "half", [b"\\ud800", b"\\udc00", b"\\ud800abcdef", b"\\ud800\\u0041", b"\\ud800\\ud800"]
)
def test_lone_surrogate_is_refused(half: bytes) -> None:
    # A text with a lone surrogate cannot be encoded again, not even in a dead letter's reason.
    for value in (
        b'{"client_id": "%s"}',
        b'{"client_id": "a", "plan": "%s"}',
        b'{"client_id": "a", "%s": 1}',
        b'{"client_id": "a", "reply_to": {"partition": 1, "id": "%s"}}',
    ):
        refused(value % half)
    for key, body in (
        (b'["client", "%s", ""]' % half, b'{"limits": "1/s"}'),
        (b'["%s", "a", ""]' % half, None),
        (b'["client", "a", "%s"]' % half, None),
        (b'["client", "a", ""]', b'{"limits": "%s"}' % half),
        (b'["client", "a", ""]', b'{"limits": [{"%s": 1}]}' % half),
    ):
        with pytest.raises(UndecodableRecord) as caught:
            decode_update(1, key, body, None)
        caught.value.reason.encode()


def test_missing_value_and_unknown_formats_are_refused() -> None:
    assert refused(None) == refused(b"") == "the record has no value"
    assert "version 3" in refused(b"\x03" + encode_batch(GOOD)[1:])
    assert "upgrade" in refused(b"\x03")
    assert "kind 88" in refused(HEADER.pack(VERSION, ord("X"), 0, 1, 1) + b"\x90")


def test_batch_with_too_many_checks_is_refused() -> None:
    whole = Batch(0, 1, 1, [Check("a")] * MAX_BATCH)
    assert decode_checks_record(encode_batch(whole)) == whole
    assert "10001" in refused(encode_batch(Batch(0, 1, 1, [Check("a")] * (MAX_BATCH + 1))))
    assert "100000" in refused(encode_batch(Batch(0, 1, 1, [Check("a")] * 100_000)))


def test_oversized_record_is_refused_before_decoding() -> None:
    assert "bytes; a record has at most" in refused(HEAD + b"\xdd" + bytes(MAX_RECORD))
    assert "bytes; a record has at most" in refused(b"{" + b" " * MAX_RECORD)
    for key, value in ((b" " * (MAX_RECORD + 1), b"{}"), (b'["default"]', b" " * (MAX_RECORD + 1))):
        with pytest.raises(UndecodableRecord, match="bytes; a record has at most"):
            decode_update(0, key, value, None)


def test_oversized_array_is_refused_before_decoding() -> None:
    claimed = HEAD + b"\xdd" + (1_000_000).to_bytes(4) + b"\x91\xa1a" * 1_000_000
    began = perf_counter()
    msgspec.msgpack.decode(claimed[len(HEAD) :])
    decoding_s = perf_counter() - began
    began = perf_counter()
    assert "1000000 checks" in refused(claimed)
    assert perf_counter() - began < decoding_s / 2


@pytest.mark.parametrize("cost", [-1, MAX_COST + 1, 2**63, -(2**63), 1.5, None, "1", True])
def test_batch_with_an_invalid_cost_is_refused(cost: Any) -> None:
    refused(HEAD + msgspec.msgpack.encode([["alice", 1], ["alice", cost]]))


@pytest.mark.parametrize(
    "update",
    [
        Update(-1, "client", "a", "", None),
        Update(2**63, "client", "a", "", None),
        Update(1, "nobody", "a", "", None),
        Update(1, "client", "", "", None),
        Update(1, "client", "a\0b", "", None),
        Update(1, "plan", "x" * 257, "", None),
        Update(1, "default", "a", "", None),
        Update(1, "client", "a", "\n", None),
        Update(1, "client", "a", "", Policy((Limit(1_001, 0),))),
        Update(1, "client", "a", "", Policy((Limit(1, 0), Limit(1, 60_000)))),
        Update(1, "client", "a", "", Policy((Limit(1, -60_000),))),
        Update(1, "client", "a", "", Policy((Limit(-1, 60_000),))),
        Update(1, "client", "a", "", Policy((Limit(2**63, 60_000),))),
        Update(1, "client", "a", "", Policy((Limit(1, 1_000), Limit(1, 60_000)))),
        Update(1, "client", "a", "", Policy((Limit(1, 60_000),) * 2)),
        Update(1, "client", "a", "", Policy((Limit(1, 60_000),) * 1_000)),
    ],
)
def test_relayed_update_with_an_invalid_policy_is_refused(update: Update) -> None:
    refused(HEADER.pack(VERSION, KIND_UPDATE, NO_REPLY, 0, 1) + msgspec.msgpack.encode(update))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, None),
        (b"", None),
        (b"alice", None),
        (b'"alice"', None),
        (b"[]", None),
        (b'["nobody", "a"]', None),
        (b'["client", ""]', None),
        (b'["client"]', None),
        (b'["client", "a\\u0000"]', None),
        (b'["default", "a"]', None),
        (b'["client", "a", "\\n"]', None),
        (b"[" * DEEP, None),
        (b'["client", "a", "", ' + b"[" * DEEP, None),
        *(
            (b'["client", "a"]', value)
            for value in (
                b"",
                b"{}",
                b"null",
                b"5/minute",
                b'{"limits": []}',
                b'{"limits": ["5/never"]}',
                b'{"limits": "5/minute", "more": 1}',
                b'{"limits": ' + b"[" * DEEP + b"]" * DEEP + b"}",
                b'{"limits": {"max": ' + b"9" * 4_000 + b', "window_seconds": 1}}',
                b'{"limits": {"max": ' + b"9" * 40_000 + b', "window_seconds": 1}}',
            )
        ),
    ],
)
def test_invalid_limit_update_is_refused(key: bytes | None, value: bytes | None) -> None:
    with pytest.raises(UndecodableRecord) as caught:
        decode_update(1, key, value, None)
    caught.value.reason.encode()


@pytest.mark.parametrize(
    "header",
    [b"", None, b"3", b":x", b"3:", b"-1:x", b"x:y", b"\xff:\xff", "٣:x".encode(), b"9" * 5_000 + b":x"],
)
def test_invalid_reply_to_header_wants_no_reply(header: Any) -> None:
    found = decode_update(1, b'["client", "a"]', None, [("reply-to", header)])
    assert found.reply_to is None


def test_reply_address_of_a_broken_batch_is_known() -> None:
    assert reply_address(HEAD + b"\xc1") == (2, 77, 5)
    assert reply_address(HEAD) == (2, 77, 5)
    assert reply_address(encode_batch(Batch(NO_REPLY, 77, 5, []))) is None
    assert reply_address(HEAD[:-1]) is None
    assert reply_address(None) is None
    assert reply_address(encode_update(Update(1, "client", "a", "", None))) is None
    assert reply_address(b'{"client_id": "someone with a long name"}') is None
    assert reply_address(b"{B, from here on, is no batch") is None
    assert reply_address(b"\x03" + HEAD[1:]) is None
    assert reply_incarnation(b"short") is None


@pytest.mark.parametrize("value", [b"\x02" + encode_reply(Reply(1, 2, 3, 4, []))[1:], b"", b"\x01B"])
def test_invalid_reply_is_refused(value: bytes) -> None:
    with pytest.raises(UndecodableRecord):
        decode_reply(value)


def test_kinds_of_limit_updates_are_fixed() -> None:
    assert KINDS == ("client", "plan", "default", "reset")
