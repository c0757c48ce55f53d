"""``checks``: the log that decides. Its records in the order of a partition are the order of all decisions.

Batches, relayed updates and denials begin with the same header, :data:`HEADER`. It can be read even if the
body cannot, so that a broken batch is answered with an error::

    offset  size  type      field
    0       1     u8        version: 1
    1       1     u8        kind: "B" (0x42) batch, "U" (0x55) relayed update, "D" (0x44) denials
    2       4     i32       reply partition, of replies; -1: no reply wanted
    6       8     u64       incarnation: random, identifies one run of the sender; 0 for an update
    14      8     u64       number: of the batch, random; for an update its version, for denials 0
    22      -     msgpack   body: an array

    body of a batch: at most 10,000 checks, each an array
    index   msgpack type    field
    0       string          client: 1 to 256 bytes, no control characters
    1       integer         cost: 0 to 1,000,000; 0 only looks
    2       string          plan; empty: none
    3       string          resource; empty: none

    body of a relayed update (the reply partition in the header is -1)
    index   msgpack type    field
    0       integer         version: offset of the record in limit-updates
    1       string          kind: client, plan, default or reset; "enable" with the id "holds" enables holds
    2       string          id; empty for the default
    3       string          resource; empty: none
    4       array or nil    policy: [[[max, window_ms], ...]]; window 0: in flight; nil: deletion, reset
    5       array or nil    reply_to: [partition, id] of the confirmation
    6       integer         order: offset in the home partition; -1: none
    7       array           signature: [key id, MAC]; absent if the worker has no relay keys

    body of denials: rows, each an array
    index   msgpack type    field
    0       string          client
    1       string          plan; empty: none
    2       string          resource; empty: none
    3       integer         checks: how many were denied, at least 1
    4       integer         cost: their total cost, at least 1

Batches and settlements about holds have format version 2 (:mod:`stoplog.wire.holds`).

Other producers write *single checks* in JSON. Only ``client_id`` is required; unknown fields are refused::

    {"client_id": "alice", "cost": 1, "plan": null, "resource": null,
     "reply_to": {"partition": 3, "id": "req-17"}}
"""

from __future__ import annotations

from itertools import pairwise
from struct import Struct
from struct import error as struct_error
from typing import Annotated, Final

import msgspec
from msgspec.structs import astuple

from stoplog.errors import InvalidInput, UndecodableRecord
from stoplog.policy import MAX_COST, check_cost, check_id, check_policy
from stoplog.wire.format import KIND_BATCH, NO_REPLY, VERSION, ReplyTo, check_size, pack, to_json
from stoplog.wire.holds import (
    HOLDS_VERSION,
    KIND_SETTLEMENTS,
    HoldRow,
    SettlementBatch,
    SettlementRow,
)
from stoplog.wire.limit_updates import ENABLE_HOLDS, Update, check_key

HEADER: Final = Struct(">BBiQQ")
"""Version, kind, reply partition, incarnation, number."""

KIND_UPDATE: Final = ord("U")
"""Kind of a relayed limit update."""

KIND_DENIALS: Final = ord("D")
"""Kind of a report of denials."""

MAX_BATCH: Final = 10_000
"""Checks in one batch, and in the list of one HTTP call."""

POSITION_BITS: Final = 16
"""A position is ``offset << 16 | index in the batch``, so MAX_BATCH must stay below 2**16."""


class Check(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A question to the store: may a client spend this now?

    Attributes:
        client: Id of the client.
        cost: Requests to charge; 0 only looks.
        plan: Plan whose limits apply if the client has none of its own; empty for none.
        resource: Resource with limits and counters of its own; empty for none.
    """

    client: str
    cost: int = 1
    plan: str = ""
    resource: str = ""


class Batch(msgspec.Struct, frozen=True, gc=False):
    """Checks of one partition in one record.

    Attributes:
        partition: Partition of ``replies`` for the reply; -1 if no reply is wanted.
        incarnation: Identifies one run of the sender.
        number: Identifies the batch in that run.
        checks: The checks.
        hold_rows: Requests and settlements of holds, by ascending index. ``None`` for format version 1.
    """

    partition: int
    incarnation: int
    number: int
    checks: list[Check]
    hold_rows: list[HoldRow] | None = None


class SingleCheck(msgspec.Struct, frozen=True, gc=False):
    """A check in a record of its own."""

    check: Check
    reply_to: ReplyTo | None

    @property
    def checks(self) -> list[Check]:
        """The check as a list, like the checks of a batch."""
        return [self.check]


_Count = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class Denied(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How many checks of one client the deny cache denied, and their total cost."""

    client: str
    plan: str
    resource: str
    checks: _Count
    cost: _Count


class Denials(msgspec.Struct, frozen=True, gc=False):
    """A gateway's report of what its deny cache denied. It decides nothing and charges nothing."""

    incarnation: int
    sums: list[Denied]


_check_list = msgspec.msgpack.Decoder(list[Check])

_held_checks = msgspec.msgpack.Decoder(tuple[list[Check], list[HoldRow]])

_settlement_rows = msgspec.msgpack.Decoder(list[SettlementRow])

_denied_list = msgspec.msgpack.Decoder(list[Denied])

_update = msgspec.msgpack.Decoder(Update)


class _JsonReplyTo(msgspec.Struct, forbid_unknown_fields=True):
    partition: int
    id: str


class _JsonCheck(msgspec.Struct, forbid_unknown_fields=True):
    client_id: str
    cost: int = 1
    plan: str | None = None
    resource: str | None = None
    reply_to: _JsonReplyTo | None = None


_json_check = msgspec.json.Decoder(_JsonCheck)


def encode_batch(batch: Batch) -> bytes:
    """Return the value of a batch."""
    if batch.hold_rows is not None:
        head = HEADER.pack(HOLDS_VERSION, KIND_BATCH, batch.partition, batch.incarnation, batch.number)
        return head + pack((batch.checks, batch.hold_rows))
    head = HEADER.pack(VERSION, KIND_BATCH, batch.partition, batch.incarnation, batch.number)
    return head + pack(batch.checks)


def encode_settlements(batch: SettlementBatch) -> bytes:
    """Return the value of a record of settlements."""
    head = HEADER.pack(HOLDS_VERSION, KIND_SETTLEMENTS, batch.partition, batch.incarnation, batch.number)
    return head + pack(batch.rows)


def encode_denials(denials: Denials) -> bytes:
    """Return the value of a report of denials."""
    return HEADER.pack(VERSION, KIND_DENIALS, NO_REPLY, denials.incarnation, 0) + pack(denials.sums)


def encode_update(update: Update) -> bytes:
    """Return the value of a relayed limit update. Its reply address is in the body, not in the header."""
    body = unsigned_body(update) if update.signature is None else pack(update)
    return HEADER.pack(VERSION, KIND_UPDATE, NO_REPLY, 0, update.version) + body


def unsigned_body(update: Update) -> bytes:
    """Return the body of a relayed limit update without its signature."""
    return pack(astuple(update)[:-1])


def encode_single(single: SingleCheck) -> bytes:
    """Return the value of a single check, which any producer may write."""
    check, to = single.check, single.reply_to
    return to_json(
        {
            "client_id": check.client,
            "cost": check.cost,
            "plan": check.plan or None,
            "resource": check.resource or None,
            "reply_to": {"partition": to.partition, "id": to.id} if to else None,
        }
    )


def decode_checks_record(value: bytes | None) -> Batch | Denials | SettlementBatch | SingleCheck | Update:
    """Return the content of a record of ``checks``.

    Raises:
        UndecodableRecord: The record is malformed; the error states the reason. :func:`reply_address` may
            still return where to report it.
    """
    if not value:
        raise UndecodableRecord("the record has no value")
    check_size(value)
    try:
        if value[0] == 0x7B:  # {
            return _single(value)
        if value[0] == HOLDS_VERSION:
            return _with_holds(value)
        if value[0] != VERSION:
            raise UndecodableRecord(f"format version {value[0]} is not known here; upgrade the worker")
        _, kind, partition, incarnation, number = HEADER.unpack_from(value)
        body = memoryview(value)[HEADER.size :]
        if kind == KIND_UPDATE:
            return _relayed(_update.decode(body))
        if kind not in (KIND_BATCH, KIND_DENIALS):
            raise UndecodableRecord(f"record kind {kind} is not known here; upgrade the worker")
        claimed = _array_length(body)
        if claimed > MAX_BATCH:
            raise UndecodableRecord(f"{claimed} checks in a batch; at most {MAX_BATCH:,} are accepted")
        if kind == KIND_DENIALS:
            return Denials(incarnation, _denied_list.decode(body))
        checks = _check_list.decode(body)
    except (msgspec.MsgspecError, struct_error, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not a check: {exc}") from exc
    except InvalidInput as exc:
        raise UndecodableRecord(f"not a valid check: {exc}") from exc
    for check in checks:
        if not 0 <= check.cost <= MAX_COST:
            raise UndecodableRecord(f"cost {check.cost} is out of bounds; use 0 to {MAX_COST:,}")
    return Batch(partition, incarnation, number, checks)


def _with_holds(value: bytes) -> Batch | SettlementBatch:
    """Decode a record of format version 2."""
    _, kind, partition, incarnation, number = HEADER.unpack_from(value)
    body = memoryview(value)[HEADER.size :]
    if kind == KIND_SETTLEMENTS:
        _check_length(body)
        return SettlementBatch(partition, incarnation, number, _settlement_rows.decode(body))
    if kind != KIND_BATCH:
        raise UndecodableRecord(f"record kind {kind} is not known here; upgrade the worker")
    _check_length(body[1:])  # the checks begin behind the first byte, of the array of two
    checks, rows = _held_checks.decode(body)
    for check in checks:
        if not 0 <= check.cost <= MAX_COST:
            raise UndecodableRecord(f"cost {check.cost} is out of bounds; use 0 to {MAX_COST:,}")
    indexes = [row.index for row in rows]
    if any(a >= b for a, b in pairwise(indexes)) or (indexes and indexes[-1] >= len(checks)):
        raise UndecodableRecord("the rows about holds are not in the order of the checks")
    return Batch(partition, incarnation, number, checks, rows)


def _check_length(body: memoryview) -> None:
    claimed = _array_length(body)
    if claimed > MAX_BATCH:
        raise UndecodableRecord(f"{claimed} rows in a record; at most {MAX_BATCH:,} are accepted")


def _array_length(body: memoryview) -> int:
    """Return the length that the msgpack array in *body* claims, before decoding allocates memory for it."""
    if body and body[0] in (0xDC, 0xDD):
        return int.from_bytes(body[1 : 3 if body[0] == 0xDC else 5])
    return 0  # an array of at most 15 items, or no array: decoding finds out


def _relayed(update: Update) -> Update:
    """Return *update* if a worker can have relayed it. An invalid policy must never come into force."""
    if not 0 <= update.version < 2**63:
        raise UndecodableRecord(f"version {update.version} is not an offset of limit-updates")
    if update.key != ENABLE_HOLDS:
        check_key(update.key)
    if update.policy is not None:
        check_policy(update.policy)
    return update


def _single(value: bytes) -> SingleCheck:
    raw = _json_check.decode(value)
    check = Check(
        check_id(raw.client_id, "client_id"),
        check_cost(raw.cost),
        check_id(raw.plan, "plan") if raw.plan is not None else "",
        check_id(raw.resource, "resource") if raw.resource is not None else "",
    )
    to = raw.reply_to
    return SingleCheck(check, ReplyTo(to.partition, to.id) if to else None)


def reply_address(value: bytes | None) -> tuple[int, int, int] | None:
    """Return partition, incarnation and number for the reply to a batch whose body cannot be decoded.

    ``None`` if *value* is no batch, or wants no reply.
    """
    if value is None or len(value) < HEADER.size or value[0] not in (VERSION, HOLDS_VERSION):
        return None
    if value[1] != KIND_BATCH:
        return None
    _, _, partition, incarnation, number = HEADER.unpack_from(value)
    return (partition, incarnation, number) if partition >= 0 else None
