from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from stoplog.policy import MAX_COST, UNLIMITED, Policy, parse_policy
from stoplog.wire.checks import (
    MAX_BATCH,
    POSITION_BITS,
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
from stoplog.wire.format import ReplyTo
from stoplog.wire.heartbeats import Heartbeat, PartitionState, decode_heartbeat, encode_heartbeat
from stoplog.wire.limit_updates import (
    Signature,
    Update,
    UpdateKey,
    decode_update,
    encode_update_key,
    encode_update_value,
    reply_to_header,
)
from stoplog.wire.replies import (
    Decision,
    Reply,
    decode_reply,
    encode_json_reply,
    encode_reply,
    reply_incarnation,
)

U64 = st.integers(0, 2**64 - 1)
I63 = st.integers(0, 2**63 - 1)
I31 = st.integers(0, 2**31 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ids = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20)
checks = st.builds(Check, texts, st.integers(0, MAX_COST), texts, texts)
batches = st.builds(Batch, st.integers(-1, 2**31 - 1), U64, U64, st.lists(checks, max_size=20))
reply_tos = st.builds(ReplyTo, I31, ids.filter(lambda id_: not id_.isspace()))
singles = st.builds(
    SingleCheck,
    st.builds(Check, ids, st.integers(0, MAX_COST), ids | st.just(""), ids | st.just("")),
    reply_tos | st.none(),
)
policies = st.sampled_from([None, UNLIMITED, parse_policy("100/minute"), parse_policy(["5/1500ms", "1/day"])])
keys = st.one_of(
    st.builds(UpdateKey, st.sampled_from(("client", "plan", "reset")), ids, ids | st.just("")),
    st.builds(UpdateKey, st.just("default"), st.just(""), ids | st.just("")),
)
updates = st.builds(
    lambda version, key, policy, to, signature: Update(
        version, key.kind, key.id, key.resource, None if key.kind == "reset" else policy, to, -1, signature
    ),
    I63,
    keys,
    policies,
    reply_tos | st.none(),
    st.builds(Signature, texts, st.binary(max_size=40)) | st.none(),
)
decisions = st.builds(
    Decision,
    st.booleans(),
    I63 | st.none(),
    I63 | st.none(),
    I63,
    I63 | st.none(),
    st.integers(-1, 2**63 - 1),
)
replies = st.builds(Reply, U64, U64, I63, st.integers(-1, 2**63 - 1), st.lists(decisions | texts | st.none()))


@given(batches)
def test_batch_decodes_to_itself(batch: Batch) -> None:
    value = encode_batch(batch)
    assert decode_checks_record(value) == batch
    address = (batch.partition, batch.incarnation, batch.number) if batch.partition >= 0 else None
    assert reply_address(value) == address


@given(singles)
def test_single_check_decodes_to_itself(single: SingleCheck) -> None:
    assert decode_checks_record(encode_single(single)) == single


def test_single_check_of_another_producer_is_decoded() -> None:
    value = b'{"client_id": "alice", "cost": 1, "reply_to": {"partition": 3, "id": "req-17"}}'
    assert decode_checks_record(value) == SingleCheck(Check("alice"), ReplyTo(3, "req-17"))
    assert decode_checks_record(b'{"client_id": "zo\\u00eb"}') == SingleCheck(Check("zoë"), None)


@given(updates)
def test_relayed_update_decodes_to_itself(update: Update) -> None:
    assert decode_checks_record(encode_update(update)) == update


def test_denials_decode_to_themselves() -> None:
    denials = Denials(77, [Denied("alice", "gold", "login", 3, 7), Denied("zoë", "", "", 1, 2**53)])
    value = encode_denials(denials)
    assert decode_checks_record(value) == denials
    assert reply_address(value) is None


@given(I63, keys, policies, reply_tos | st.none())
def test_limit_update_decodes_to_itself(
    offset: int, key: UpdateKey, policy: Policy | None, to: ReplyTo | None
) -> None:
    headers = [("other", b"x"), *([reply_to_header(to)] if to else [])]
    found = decode_update(offset, encode_update_key(key), encode_update_value(policy), headers)
    expected = None if key.kind == "reset" else policy
    assert found == Update(offset, key.kind, key.id, key.resource, expected, to)
    assert found.key == key


@given(replies)
def test_reply_decodes_to_itself(reply: Reply) -> None:
    value = encode_reply(reply)
    assert decode_reply(value) == reply
    assert reply_incarnation(value) == reply.incarnation


@given(U64, U64, I63, texts)
def test_error_reply_decodes_to_itself(incarnation: int, number: int, offset: int, error: str) -> None:
    reply = Reply(incarnation, number, offset, -1, [], error)
    assert decode_reply(encode_reply(reply)) == reply


@given(
    st.builds(
        Heartbeat,
        texts,
        st.sampled_from(("worker", "gateway")),
        texts,
        texts,
        I63,
        st.dictionaries(st.integers(0, 63), st.builds(PartitionState, texts, I63)),
        st.booleans(),
    )
)
def test_heartbeat_decodes_to_itself(heartbeat: Heartbeat) -> None:
    assert decode_heartbeat(encode_heartbeat(heartbeat)) == heartbeat


@given(reply_tos)
def test_json_reply_holds_its_id_and_facts(to: ReplyTo) -> None:
    assert json.loads(encode_json_reply(to, allowed=True, retry_after_ms=None)) == {
        "id": to.id,
        "allowed": True,
        "retry_after_ms": None,
    }


def test_position_has_room_for_the_index_of_any_check() -> None:
    assert MAX_BATCH < 2**POSITION_BITS
