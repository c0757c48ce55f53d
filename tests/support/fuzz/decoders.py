"""The decoders that read bytes of others, each with examples and the properties that must hold for any bytes.

A target raises :class:`AssertionError`, or an exception that is not documented, if a property is violated. It
returns whether the input was accepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from google.protobuf.message import DecodeError
from stoplog_gateway.access.tokens_file import TokensFileError, parse_tokens
from stoplog_gateway.envoy.call import RateLimitCall, call_of
from stoplog_gateway.envoy.mapping import DescriptorMapping, Rule, parse_mapping
from stoplog_gateway.envoy.messages import HealthCheckRequest, RateLimitRequest
from stoplog_gateway.envoy.service import RateLimitService
from stoplog_gateway.http.problems import ProblemError, render_error
from stoplog_gateway.http.routes.check import parse_check, parse_checks
from stoplog_gateway.http.routes.envoy_json import parse_call, parse_message
from stoplog_worker.algorithm.relay_keys import parse_relay_keys
from stoplog_worker.algorithm.state_codec import (
    MARKER_KEY,
    Marker,
    PolicyChange,
    decode_history,
    decode_key,
    decode_marker,
    decode_state,
    encode_history,
    encode_key,
    encode_marker,
    encode_state,
    expires_at_ms,
    position_of,
    without_charges,
)
from stoplog_worker.state.store import COUNTERS, POLICIES, NewerMarker, Record

from stoplog.errors import InvalidInput, SettingsError, TopicError, UndecodableRecord
from stoplog.kafka.oauth_tokens import parse_token_response
from stoplog.policy import check_id, parse_limit, parse_policy, usable_id
from stoplog.topics import DEFAULT_FILE, parse_topics
from stoplog.tracing import context_from
from stoplog.wire import audit, checks, heartbeats, holds, limit_updates, partition_count, replies
from stoplog.wire.format import ReplyTo
from tests.support.fake_limiter import FakeLimiter


class Target(NamedTuple):
    """A decoder.

    Attributes:
        name: Its name, also that of the file with inputs that were found.
        examples: Valid inputs.
        run: Decodes an input; returns whether it was accepted. Raises if a property is violated.
        msgpack_at: Index at which msgpack begins in the examples; ``None`` if there is none.
        share: Inputs relative to other decoders.
    """

    name: str
    examples: tuple[bytes, ...]
    run: Callable[[bytes], bool]
    msgpack_at: int | None = None
    share: float = 1.0


POLICY: Final = parse_policy(["100/day", "3/minute"])
SEPARATOR: Final = b"\x1e"
"""Separates key, value and headers in an input."""


# --- records of Kafka ---


def _encode_checks_record(record: Any) -> bytes:
    match record:
        case checks.Batch():
            return checks.encode_batch(record)
        case checks.Denials():
            return checks.encode_denials(record)
        case checks.SingleCheck():
            return checks.encode_single(record)
        case holds.SettlementBatch():
            return checks.encode_settlements(record)
        case _:
            return checks.encode_update(record)


_UPDATE: Final = limit_updates.Update(41, "client", "alice", "login", POLICY, ReplyTo(3, "u-1"), 7)
_SETTLEMENTS: Final = (holds.Settlement((7, 5, 0), 3), holds.Settlement((7, 6, 1), 1, True))
_ASK: Final = holds.Ask(holds.LEASE, (7, 9, 0), 4, 20, 3_000, ((7, 6, 1),))
CHECKS_RECORDS: Final = (
    checks.Batch(2, 77, 7, [checks.Check("alice", 2)], [holds.HoldRow(0, _ASK, _SETTLEMENTS)]),
    holds.SettlementBatch(2, 77, 8, [holds.SettlementRow("alice", "login", _SETTLEMENTS)]),
    checks.Batch(2, 77, 5, [checks.Check("alice", 1, "gold", "login"), checks.Check("zo\u00eb")]),
    checks.Batch(-1, 77, 6, [checks.Check(f"c{i}", i) for i in range(20)]),
    checks.Denials(77, [checks.Denied("alice", "", "login", 3, 9)]),
    _UPDATE,
    msgspec.structs.replace(_UPDATE, signature=limit_updates.Signature("2026", b"m" * 32)),
    limit_updates.Update(1, "default", "", "", None),
    checks.SingleCheck(checks.Check("alice", 2, "gold", "login"), ReplyTo(3, "req-17")),
)


def _run_checks_record(data: bytes) -> bool:
    checks.reply_address(data)
    try:
        decoded = checks.decode_checks_record(data)
    except UndecodableRecord as exc:
        exc.reason.encode()  # it becomes a header
        return False
    assert checks.decode_checks_record(_encode_checks_record(decoded)) == decoded
    return True


REPLIES: Final = (
    replies.Reply(7, 5, 9, 41, [replies.Decision(True, 100, 99, 60_000, 0, -1), None, "wrong partition"]),
    replies.Reply(7, 5, 9, 41, [replies.Decision(False, 3, 0, 60_000, None, 41)] * 20),
    replies.Reply(2**64 - 1, 2**64 - 1, 2**63 - 1, -1, [], "not a check: zo\u00eb"),
)


def _run_reply(data: bytes) -> bool:
    replies.reply_incarnation(data)
    try:
        decoded = replies.decode_reply(data)
    except UndecodableRecord:
        return False
    assert replies.decode_reply(replies.encode_reply(decoded)) == decoded
    return True


HELD_REPLIES: Final[tuple[replies.Reply | replies.SettlementReply, ...]] = (
    replies.Reply(
        7, 5, 9, 41, [replies.HeldDecision(True, 100, 79, 60_000, 0, -1, 5, holds.Grant(20, 3_000))]
    ),
    replies.Reply(
        7,
        5,
        9,
        41,
        [replies.HeldDecision(False, 3, 0, 60_000, 9, 41, 7, None, (holds.SETTLED_NOW, 12)), None],
    ),
    replies.SettlementReply(7, 5, 9, 41, [(holds.SETTLED_NOW, holds.NOT_OPEN), None, "wrong partition"]),
)


def _run_json_reply(data: bytes) -> bool:
    accepted = False
    for kind in (replies.UpdateReply, replies.LookupReply):
        try:
            decoded = msgspec.json.decode(data, type=kind)
        except (ValueError, RecursionError):  # what the consumer of replies expects
            continue
        assert msgspec.json.decode(msgspec.json.encode(decoded), type=kind) == decoded
        accepted = True
    return accepted


def _join(key: bytes, value: bytes, *headers: tuple[bytes, bytes]) -> bytes:
    return SEPARATOR.join((key, value, *(name + b"=" + content for name, content in headers)))


def _run_limit_update(data: bytes) -> bool:
    key, _, rest = data.partition(SEPARATOR)
    value, *fields = rest.split(SEPARATOR)
    headers = [
        (name.decode(errors="replace"), content)
        for name, _, content in (field.partition(b"=") for field in fields)
    ]
    source = audit.source_of(headers)
    assert audit.source_of(audit.source_headers(source)) == source
    try:
        decoded = limit_updates.decode_update(41, key, value or None, headers)
    except UndecodableRecord as exc:
        exc.reason.encode()
        return False
    again = limit_updates.decode_update(
        41,
        limit_updates.encode_update_key(decoded.key),
        limit_updates.encode_update_value(decoded.policy),
        headers,
    )
    assert again == decoded
    return True


def _run_struct(decode: Callable[[bytes], Any], encode: Callable[[Any], bytes], data: bytes) -> bool:
    """Run a decoder of one value, which raises UndecodableRecord."""
    try:
        decoded = decode(data)
    except UndecodableRecord:
        return False
    assert decode(encode(decoded)) == decoded
    return True


HEARTBEATS: Final = (
    heartbeats.Heartbeat("gateway-1", "gateway", "0.3.0", "host", 1_764_457_200_000),
    heartbeats.Heartbeat(
        "worker-1", "worker", "0.3.0", "host", 5, {0: heartbeats.PartitionState("running", 3)}, lane="a"
    ),
)
_AUDIT: Final = audit.AuditRecord(
    1, 80_871_424, 1_764_457_200_000, 41, ["100/minute"], 12, "unlimited", "admin", "10.0.0.7", "7d1f"
)


# --- entries of changelogs ---


def _window(*numbers: int) -> bytes:
    return msgspec.msgpack.encode([list(numbers)])


_HEAD: Final = b"\x01" + (9 << 16).to_bytes(8)
STATES: Final = (
    _HEAD + _window(60_000, 0, 1_700_000, 3, 1, 2),
    _HEAD
    + msgspec.msgpack.encode([[86_400_000, 0, 20_000, 9], [60_000, 5_000, 1_700_000, 3, 1, 2], [1, 500]]),
    _HEAD + msgspec.msgpack.encode([]),
    b"\x02"
    + _HEAD[1:]
    + msgspec.msgpack.encode(
        [
            [[60_000, 0, 1_700_000, 3], [1, 500]],
            [((7, 9, 0), 0, 4, 1_703_000, 20), ((7, 5, 0), 1, 0, 1_709_000, 3)],
        ]
    ),
)


def _run_state(data: bytes) -> bool:
    if Record(0, b"alice", data).entry(COUNTERS) is None:
        return False
    state = decode_state(data)
    expires_at_ms(data)
    assert position_of(data) == state.position
    assert decode_state(without_charges(data)).windows == {}
    # A foreign state may hold what no worker writes, such as one window twice. It becomes one that a worker
    # writes, and stays as it is from then on.
    written = encode_state(state)
    again = decode_state(written)
    assert encode_state(again) == written
    assert again.position == state.position
    assert again.windows == state.windows
    assert (again.holds is None) == (state.holds is None)
    assert list(again.holds or ()) == list(state.holds or ())
    return True


MARKERS: Final = tuple(
    encode_marker(marker)
    for marker in (
        Marker(9, 1_764_457_200_000, 5, 41, "topic", POLICY, "updates", {"counters": "a", "policies": "b"}),
        Marker(9, 0, -1, -1, "topic", parse_policy("unlimited"), signed_from=7),
    )
)


def _run_marker(data: bytes) -> bool:
    record = Record(0, MARKER_KEY, data)
    NewerMarker().note(record, POLICIES, lambda: None)
    if record.entry(POLICIES) is None:
        return False
    marker = decode_marker(data)
    assert decode_marker(encode_marker(marker)) == marker
    return True


HISTORIES: Final = tuple(
    encode_history(history, 9 << 16)
    for history in (
        [PolicyChange(0, -1, None)],
        [
            PolicyChange(5, 41, POLICY, 7),
            PolicyChange(9, 42, None),
            PolicyChange(12, 43, parse_policy("1/s")),
        ],
    )
)


def _run_history(data: bytes) -> bool:
    if Record(0, b"client\0alice\0", data).entry(POLICIES) is None:
        return False
    history = decode_history(data)
    assert decode_history(encode_history(history, position_of(data))) == history
    return True


def _run_key(data: bytes) -> bool:
    key = decode_key(data)
    assert decode_key(encode_key(key)) == key
    return True


# --- texts of callers and operators ---


def _run_policy(data: bytes) -> bool:
    try:
        value = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return False
    try:
        policy = parse_policy(value)
    except InvalidInput as exc:
        str(exc).encode(errors="surrogatepass")
        return False
    assert parse_policy(policy.spec()) == policy
    return True


def _run_limit(data: bytes) -> bool:
    try:
        limit = parse_limit(data.decode(errors="replace"))
    except InvalidInput:
        return False
    assert parse_limit(str(limit)) == limit
    return True


def _run_id(data: bytes) -> bool:
    text = data.decode(errors="surrogateescape")
    assert check_id(usable_id(text), "id") == usable_id(text)
    try:
        return check_id(text, "id") == text
    except InvalidInput:
        return False


def _run_check_body(parse: Callable[[bytes], Any], data: bytes) -> bool:
    try:
        parse(data)
    except (ProblemError, InvalidInput) as exc:
        rendered = render_error(exc)
        assert rendered is not None
        assert 400 <= rendered.status < 500
        return False
    return True


def _run_tokens(data: bytes) -> bool:
    try:
        tokens = parse_tokens(data, Path("tokens"))
    except TokensFileError:
        return False
    lines = (
        f"{token.name} {','.join(token.scopes)} sha256:{token.digest.hex()} {token.created}\n"
        for token in tokens
    )
    assert parse_tokens("".join(lines).encode(), Path("tokens")) == tokens
    return True


def _run_relay_keys(data: bytes) -> bool:
    try:
        keys = parse_relay_keys(data.decode("latin-1"))
    except InvalidInput as exc:
        if any(part in str(exc) for part in ("abab", "cdcd")):
            raise AssertionError("the error shows a key") from exc
        return False
    for key_id in keys.announced:
        secret = keys.secret(key_id)
        assert secret is not None
        assert parse_relay_keys(f"{key_id}:{secret.hex()}").secret(key_id) == secret
    return True


def _run_topics(data: bytes) -> bool:
    try:
        specs = parse_topics(data, Path("topics.yaml"))
    except TopicError:
        return False
    for spec in specs.values():
        assert spec.partitions > 0
        assert all(isinstance(value, str) for value in spec.config().values())
    return True


def _run_mapping(data: bytes) -> bool:
    try:
        mapping = parse_mapping(data, Path("mapping.yaml"))
    except SettingsError:
        return False
    target = mapping.resolve("edge", [("user", "alice"), ("path", "/")])
    check_id(target.client, "client")
    assert target.on_unavailable in ("allow", "deny")
    return True


def _run_token_response(data: bytes) -> bool:
    try:
        token, lifetime_s = parse_token_response(data)
    except ValueError as exc:
        if "s3cr3t" in str(exc):
            raise AssertionError("the error shows the token") from exc
        return False
    assert token.isascii()
    assert token.isprintable()
    assert 0 < lifetime_s < 1e9
    return True


def _run_trace(data: bytes) -> bool:
    parent, _, state = data.partition(SEPARATOR)
    return context_from({"traceparent": parent, "tracestate": state}) is not None


# --- Envoy ---

_SERVICE: Final = RateLimitService(
    FakeLimiter(),
    DescriptorMapping({"edge": [Rule("{user}", "{tier}", "{path}", "deny"), Rule("{address}")]}),
    legacy_headers=False,
)
ENVOY_REQUESTS: Final = (
    {"domain": "edge", "descriptors": [{"entries": [{"key": "address", "value": "192.0.2.1"}]}]},
    {
        "domain": "edge",
        "hitsAddend": 3,
        "descriptors": [
            {
                "entries": [
                    {"key": "user", "value": "zo\u00eb"},
                    {"key": "tier", "value": "gold"},
                    {"key": "path", "value": "/"},
                ],
                "hitsAddend": "2",
                "limit": {"requestsPerUnit": 9, "unit": "MINUTE"},
            },
            {"entries": [{"key": "other", "value": ""}], "isNegativeHits": True},
        ],
    },
)


def _run_call(call: RateLimitCall) -> bool:
    for check, _ in _SERVICE.checks(call):
        checks.encode_batch(checks.Batch(0, 0, 0, [check]))
        check_id(check.client, "client")
        assert 0 <= check.cost <= 1_000_000
    return True


def _run_envoy(data: bytes) -> bool:
    try:
        request = RateLimitRequest.FromString(data)
    except DecodeError:
        return False
    assert RateLimitRequest.FromString(request.SerializeToString()) == request
    try:
        return _run_call(call_of(request))
    except InvalidInput:
        return False


def _run_health(data: bytes) -> bool:
    try:
        request = HealthCheckRequest.FromString(data)
    except DecodeError:
        return False
    return isinstance(request.service, str | bytes)


def _run_envoy_json(data: bytes) -> bool:
    """Run the parser without protobuf, too: it must find the same call, or leave the body to protobuf."""
    outcomes: list[RateLimitCall | str] = []
    for parse in (parse_call, lambda data: call_of(parse_message(data))):
        try:
            outcomes.append(parse(data))
        except (ProblemError, InvalidInput) as exc:
            outcomes.append(str(exc))
    call, expected = outcomes
    assert call == expected
    return isinstance(call, RateLimitCall) and _run_call(call)


def _json(*values: Any) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() for value in values)


_DIGESTS: Final = tuple(f"sha256:{digit * 64}" for digit in "0a")
_BODIES: Final = (
    {"client_id": "alice"},
    {"client_id": "alice", "cost": 3, "plan": "free", "resource": "POST /orders", "on_unavailable": "deny"},
)

TARGETS: Final[tuple[Target, ...]] = (
    Target(
        "checks",
        tuple(map(_encode_checks_record, CHECKS_RECORDS)),
        _run_checks_record,
        msgpack_at=checks.HEADER.size,
        share=4,
    ),
    Target("replies", tuple(map(replies.encode_reply, REPLIES)), _run_reply, msgpack_at=34, share=3),
    Target(
        "held-replies",
        tuple(map(replies.encode_held_reply, HELD_REPLIES)),
        partial(_run_struct, replies.decode_held_reply, replies.encode_held_reply),
        msgpack_at=34,
        share=2,
    ),
    Target(
        "json-replies",
        (
            replies.encode_json_reply(ReplyTo(1, "u-1"), applied=True, version=41, partition=1),
            replies.encode_json_reply(
                ReplyTo(1, "g-1"),
                policy_version=4,
                held_to=["client", "alice", ""],
                windows=[{"limit": "100/minute", "used": 3, "reset_after_ms": 5, "held": 2}],
                holds={"reservations": {"open": 1, "units": 2, "next_end_ms": 9}},
            ),
        ),
        _run_json_reply,
    ),
    Target(
        "limit-updates",
        (
            _join(
                b'["client","alice","login"]', b'{"limits": ["100/minute", "1/day"]}', (b"reply-to", b"3:u-1")
            ),
            _join(
                b'["plan","gold",""]', b'{"limits": "unlimited"}', (b"order", b"17"), (b"who", b"zo\xc3\xab")
            ),
            _join(b'["default","",""]', b"", (b"address", b"10.0.0.7"), (b"request-id", b"7d1f")),
            _join(b'["reset","alice",""]', b"{}"),
        ),
        _run_limit_update,
        share=3,
    ),
    Target(
        "heartbeats",
        tuple(map(heartbeats.encode_heartbeat, HEARTBEATS)),
        partial(_run_struct, heartbeats.decode_heartbeat, heartbeats.encode_heartbeat),
    ),
    Target(
        "partition-count",
        (
            partition_count.encode_partition_count(partition_count.PartitionCount(8, 4, (0, 1, 2, 3))),
            partition_count.encode_partition_count(
                partition_count.PartitionCount(8, 4), partition_count.GrowthStep(2, 16, draining=True)
            ),
        ),
        partial(
            _run_struct,
            partition_count.decode_partition_count,
            lambda record: partition_count.encode_partition_count(record.count, record.step),
        ),
    ),
    Target(
        "audit", (audit.encode_audit(_AUDIT),), partial(_run_struct, audit.decode_audit, audit.encode_audit)
    ),
    Target("states", STATES, _run_state, msgpack_at=9, share=3),
    Target("markers", MARKERS, _run_marker, msgpack_at=9, share=2),
    Target("histories", HISTORIES, _run_history, msgpack_at=9, share=2),
    Target("counter-keys", (b"alice", b"alice\0login", "zo\u00eb".encode()), _run_key, share=0.5),
    Target(
        "policies",
        _json("unlimited", ["100/minute", {"max": 5, "window_seconds": 3_600}], "1/day"),
        _run_policy,
    ),
    Target("limits", (b"100/minute", b"40/2s", b" 5 / 10 m ", b"1000/1h"), _run_limit),
    Target("ids", (b"alice", "zo\u00eb".encode(), b"a" * 256), _run_id, share=0.5),
    Target("check-bodies", _json(*_BODIES), partial(_run_check_body, parse_check), share=2),
    Target(
        "check-lists",
        _json(list(_BODIES), []),
        partial(_run_check_body, lambda data: list(parse_checks(data))),
        share=2,
    ),
    Target(
        "tokens",
        (f"# name\nops admin {_DIGESTS[0]} 2026-11-30\n\nshop check,read {_DIGESTS[1]}\n".encode(),),
        _run_tokens,
    ),
    Target("topics", (DEFAULT_FILE.read_bytes(),), _run_topics, share=0.03),
    Target(
        "envoy-mapping",
        (
            b"edge:\n  - client: '{user}'\n    plan: '{tier}'\n    on_unavailable: deny\n"
            b"  - client: '{address}'\n    resource: '{path}'\nother: []\n",
        ),
        _run_mapping,
        share=0.2,
    ),
    Target(
        "token-response",
        _json({"access_token": "s3cr3t.s3cr3t", "expires_in": 300, "token_type": "Bearer"}),
        _run_token_response,
        share=0.5,
    ),
    Target("relay-keys", (f"2026:{'ab' * 32}, 2027:{'cd' * 32}".encode(),), _run_relay_keys, share=0.5),
    Target(
        "trace",
        (b"00-0123456789abcdef0123456789abcdef-0123456789abcdef-01" + SEPARATOR + b"vendor=1,other=2",),
        _run_trace,
        share=0.5,
    ),
    Target("envoy-json", _json(*ENVOY_REQUESTS), _run_envoy_json, share=0.5),
    Target(
        "envoy", tuple(parse_message(data).SerializeToString() for data in _json(*ENVOY_REQUESTS)), _run_envoy
    ),
    Target("grpc-health", (HealthCheckRequest(service="envoy").SerializeToString(),), _run_health, share=0.2),
)
