"""The bytes of every record kind. They must never change: other versions of Stoplog read and write them.

A failure here means that the format has changed. Restore it, or give the new format a new version byte.
"""

from __future__ import annotations

import msgspec
import pytest

from stoplog.errors import UndecodableRecord
from stoplog.policy import Limit, Policy
from stoplog.wire.audit import (
    AuditRecord,
    ChangeSource,
    decode_audit,
    encode_audit,
    source_headers,
    source_of,
)
from stoplog.wire.checks import (
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
    order_header,
    reply_to_header,
)
from stoplog.wire.partition_count import (
    KEY,
    CountRecord,
    GrowthStep,
    PartitionCount,
    decode_partition_count,
    encode_partition_count,
)
from stoplog.wire.replies import Decision, Reply, decode_reply, encode_json_reply, encode_reply

INCARNATION = 0x1122334455667788
REQUESTER = ReplyTo(3, "req-17")
PER_MINUTE = Policy((Limit(100, 60_000),))

BATCH = Batch(2, INCARNATION, 7, [Check("alice"), Check("bob", 5, "gold", "login")])
BATCH_BYTES = bytes.fromhex(
    "01 42 00000002 1122334455667788 0000000000000007"  # version, B, reply partition, incarnation, number
    "92"  # two checks
    "94 a5616c696365 01 a0 a0"  # alice, cost 1, no plan, no resource
    "94 a3626f62 05 a4676f6c64 a56c6f67696e"  # bob, cost 5, plan gold, resource login
)

DENIALS = Denials(INCARNATION, [Denied("alice", "gold", "login", 3, 300)])
DENIALS_BYTES = bytes.fromhex(
    "01 44 ffffffff 1122334455667788 0000000000000000"  # version, D, no reply, incarnation, 0
    "91"  # one row
    "95 a5616c696365 a4676f6c64 a56c6f67696e 03 cd012c"  # alice, gold, login, 3 checks, cost 300
)

UPDATE = Update(41, "client", "alice", "", PER_MINUTE)
UPDATE_BYTES = bytes.fromhex(
    "01 55 ffffffff 0000000000000000 0000000000000029"  # version, U, no reply, 0, offset 41
    "97 29 a6636c69656e74 a5616c696365 a0"  # 41, client, alice, no resource
    "91 91 92 64 cdea60"  # a policy of one limit: 100 in 60,000 ms
    "c0 ff"  # no confirmation, no order
)

SIGNED = msgspec.structs.replace(UPDATE, signature=Signature("2026", bytes(range(32))))
SIGNED_BYTES = UPDATE_BYTES.replace(b"\x97", b"\x98", 1) + bytes.fromhex(
    "92 a4 32303236 c420"  # signature: key id 2026, 32 bytes
    "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"  # the MAC
)
DELETION = Update(42, "plan", "gold", "login", None, REQUESTER, 9)
DELETION_BYTES = bytes.fromhex(
    "01 55 ffffffff 0000000000000000 000000000000002a"  # version, U, no reply, 0, offset 42
    "97 2a a4706c616e a4676f6c64 a56c6f67696e"  # 42, plan, gold, login
    "c0"  # deleted
    "92 03 a67265712d3137 09"  # confirm to partition 3 as req-17; order 9
)

ANSWERS: list[Decision | str | None] = [
    Decision(True, 100, 99, 60_000, 0, 41),
    Decision(False, 10, 0, 900, None, -1),
    None,
    "cost 2000000 is out of bounds",
]
REPLY = Reply(INCARNATION, 7, 4_000, 41, ANSWERS)
REPLY_BYTES = bytes.fromhex(
    "01 42 1122334455667788 0000000000000007"  # version, B, incarnation, number
    "0000000000000fa0 0000000000000029"  # offset 4,000, applied up to 41
    "94"  # four answers
    "96 c3 64 63 cdea60 00 29"  # allowed, 99 of 100 remain, reset in 60,000 ms, version 41
    "96 c2 0a 00 cd0384 c0 ff"  # denied, 0 of 10 remain, reset in 900 ms, waiting cannot help, default
    "c0"  # decided before a restart
    "bd 636f73742032303030303030206973206f7574206f6620626f756e6473"  # a reason
)

ERROR = Reply(INCARNATION, 7, 4_000, -1, [], "not a check: größer")
ERROR_BYTES = bytes.fromhex(
    "01 45 1122334455667788 0000000000000007"  # version, E, incarnation, number
    "0000000000000fa0 ffffffffffffffff"  # offset 4,000, no update applied
    "6e6f74206120636865636b3a206772c3b6c39f6572"  # the error in UTF-8
)


@pytest.mark.parametrize(
    ("encoded", "golden", "record"),
    [
        (encode_batch(BATCH), BATCH_BYTES, BATCH),
        (encode_denials(DENIALS), DENIALS_BYTES, DENIALS),
        (encode_update(UPDATE), UPDATE_BYTES, UPDATE),
        (encode_update(DELETION), DELETION_BYTES, DELETION),
        (encode_update(SIGNED), SIGNED_BYTES, SIGNED),
    ],
    ids=["batch", "denials", "update", "deletion", "signed update"],
)
def test_binary_record_of_checks_has_golden_bytes(encoded: bytes, golden: bytes, record: object) -> None:
    assert encoded == golden
    assert decode_checks_record(golden) == record


def test_reply_address_of_a_batch_is_read_from_its_golden_bytes() -> None:
    assert reply_address(BATCH_BYTES[:22]) == (2, INCARNATION, 7)


@pytest.mark.parametrize(
    ("single", "golden"),
    [
        (
            SingleCheck(Check("alice", 2, "gold", "login"), REQUESTER),
            b'{"client_id":"alice","cost":2,"plan":"gold","resource":"login",'
            b'"reply_to":{"partition":3,"id":"req-17"}}',
        ),
        (
            SingleCheck(Check("zoë"), None),
            b'{"client_id":"zo\xc3\xab","cost":1,"plan":null,"resource":null,"reply_to":null}',
        ),
    ],
    ids=["all fields", "client only"],
)
def test_single_check_has_golden_bytes(single: SingleCheck, golden: bytes) -> None:
    assert encode_single(single) == golden
    assert decode_checks_record(golden) == single


@pytest.mark.parametrize(
    ("reply", "golden"), [(REPLY, REPLY_BYTES), (ERROR, ERROR_BYTES)], ids=["answers", "error"]
)
def test_reply_has_golden_bytes(reply: Reply, golden: bytes) -> None:
    assert encode_reply(reply) == golden
    assert decode_reply(golden) == reply


def test_json_replies_have_golden_bytes() -> None:
    assert encode_json_reply(REQUESTER, allowed=True, limit=100, retry_after_ms=0) == (
        b'{"id":"req-17","allowed":true,"limit":100,"retry_after_ms":0}'
    )
    assert encode_json_reply(REQUESTER, applied=True, version=41, partition=1) == (
        b'{"id":"req-17","applied":true,"version":41,"partition":1}'
    )
    assert encode_json_reply(REQUESTER, error="no such client") == b'{"id":"req-17","error":"no such client"}'


@pytest.mark.parametrize(
    ("key", "policy", "golden_key", "golden_value"),
    [
        (
            UpdateKey("client", "alice", "login"),
            Policy((Limit(100, 60_000), Limit(10, 1_000))),
            b'["client","alice","login"]',
            b'{"limits":["100/minute","10/second"]}',
        ),
        (UpdateKey("default"), Policy(), b'["default","",""]', b'{"limits":"unlimited"}'),
        (UpdateKey("plan", "gold"), None, b'["plan","gold",""]', None),
    ],
    ids=["client", "unlimited default", "deleted plan"],
)
def test_limit_update_has_golden_bytes(
    key: UpdateKey, policy: Policy | None, golden_key: bytes, golden_value: bytes | None
) -> None:
    headers = [reply_to_header(REQUESTER), order_header(9)]
    assert encode_update_key(key) == golden_key
    assert encode_update_value(policy) == golden_value
    assert headers == [("reply-to", b"3:req-17"), ("order", b"9")]
    assert decode_update(5, golden_key, golden_value, headers) == Update(
        5, key.kind, key.id, key.resource, policy, REQUESTER, 9
    )


def test_audit_record_has_golden_bytes() -> None:
    record = AuditRecord(
        1, 1234 << 16, 1_764_457_200_000, 41, ["100/minute"], 12, "unlimited", "admin", "10.0.0.7", "r-1"
    )
    golden = (
        b'{"version":1,"position":80871424,"at_ms":1764457200000,"policy_version":41,'
        b'"limits":["100/minute"],"previous_version":12,"previous_limits":"unlimited",'
        b'"who":"admin","address":"10.0.0.7","request_id":"r-1"}'
    )
    assert encode_audit(record) == golden
    assert decode_audit(golden) == record
    assert decode_audit(golden[:-1] + b',"later":1}') == record
    with pytest.raises(UndecodableRecord, match="format version 2 is not known here"):
        decode_audit(b'{"version":2}')
    with pytest.raises(UndecodableRecord, match="not an audit record"):
        decode_audit(None)


def test_source_of_a_change_has_golden_headers() -> None:
    source = ChangeSource("admin", "10.0.0.7", "r-1")
    golden = [("who", b"admin"), ("address", b"10.0.0.7"), ("request-id", b"r-1")]
    assert source_headers(source) == golden
    assert source_of(golden) == source
    assert source_headers(ChangeSource("sdk")) == [("who", b"sdk")]
    assert source_of(None) == source_of([("who", b""), ("order", b"3")]) == ChangeSource("kafka")


def test_source_of_a_change_is_cut_and_cleaned() -> None:
    found = source_of([("who", b"a\nb\x1b[31m\xff"), ("request-id", "é".encode() * 1_000)])
    assert found == ChangeSource("a\ufffdb\ufffd[31m\ufffd", "", "é" * 256)


def test_partition_count_has_golden_bytes_that_no_reader_takes_for_an_update() -> None:
    golden = b'{"version":1,"partitions":4}'
    assert KEY == b'["partitions","",""]'
    assert encode_partition_count(PartitionCount(4)) == golden
    assert decode_partition_count(golden) == CountRecord(PartitionCount(4))
    with pytest.raises(UndecodableRecord, match="unknown kind 'partitions'"):
        decode_update(0, KEY, golden, None)


@pytest.mark.parametrize(
    ("record", "golden"),
    [
        (
            CountRecord(PartitionCount(4), GrowthStep(1, 16)),
            b'{"version":2,"partitions":4,"epoch":1,"to":16}',
        ),
        (
            CountRecord(PartitionCount(8, 4), GrowthStep(3, 16, draining=True, token="5d0c61c5")),
            b'{"version":2,"partitions":8,"first":4,"epoch":3,"to":16,"draining":true,"token":"5d0c61c5"}',
        ),
        (
            CountRecord(PartitionCount(4, 1, (0, 17)), GrowthStep(3)),
            b'{"version":2,"partitions":4,"first":1,"copied":[0,17],"epoch":3}',
        ),
    ],
)
def test_step_of_growing_has_golden_bytes(record: CountRecord, golden: bytes) -> None:
    assert encode_partition_count(record.count, record.step) == golden
    assert decode_partition_count(golden) == record


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b'{"version":3,"partitions":4}', "format version 3 is not known here; upgrade this program"),
        (b'{"version":2,"partitions":4,"epoch":1,"to":6}', "6 is no multiple of 4"),
        (b'{"version":2,"partitions":4,"to":8}', "its epoch is missing or 0"),
        (b'{"version":2,"partitions":6,"first":4,"epoch":1}', "6 is no multiple of the first, 4"),
        (b'{"version":2,"partitions":4,"epoch":-1}', "not a number of partitions"),
    ],
)
def test_record_of_partition_count_that_cannot_be_right_is_refused(value: bytes, why: str) -> None:
    with pytest.raises(UndecodableRecord, match=why):
        decode_partition_count(value)


def test_partition_count_with_fields_of_a_later_release_is_read() -> None:
    found = decode_partition_count(b'{"version":1,"partitions":8,"first":4,"color":"blue"}')
    assert found == CountRecord(PartitionCount(8, 4))


def test_heartbeat_has_golden_bytes() -> None:
    heartbeat = Heartbeat(
        id="worker-1@host",
        role="worker",
        version="0.2.0",
        host="host",
        at_ms=1_764_457_200_000,
        partitions={0: PartitionState("running", 3)},
        lane="b",
    )
    golden = (
        b'{"id":"worker-1@host","role":"worker","version":"0.2.0","host":"host","at_ms":1764457200000,'
        b'"partitions":{"0":{"state":"running","lag":3}},"stopping":false,"lane":"b"}'
    )
    assert encode_heartbeat(heartbeat) == golden
    assert decode_heartbeat(golden) == heartbeat
