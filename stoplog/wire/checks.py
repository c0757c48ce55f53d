"""``checks``: the log that decides.

Gateways and workers write *batches*, *denials* and *updates* in binary: a fixed header (:data:`HEADER`), then
msgpack. The header can be read even where the body cannot, so that a broken batch is answered with an error.
Any other producer writes *single checks* in JSON::

    {"client_id": "alice", "cost": 1, "reply_to": {"partition": 3, "id": "req-17"}}
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error
from typing import Annotated, Final

import msgspec

from stoplog.errors import InvalidInput, UndecodableRecord
from stoplog.policy import MAX_COST, check_cost, check_id, check_policy
from stoplog.wire.format import KIND_BATCH, NO_REPLY, VERSION, ReplyTo, check_size, pack, to_json
from stoplog.wire.limit_updates import Update, check_key

HEADER: Final = Struct(">BBiQQ")
"""Version, kind, reply partition (-1: no reply wanted), incarnation of the sender, batch number."""

KIND_UPDATE: Final = ord("U")

KIND_DENIALS: Final = ord("D")

MAX_BATCH: Final = 10_000
"""Checks in one batch: the longest list that one HTTP call may bring."""

POSITION_BITS: Final = 16
"""A position is ``offset << 16 | index in the batch``; MAX_BATCH must stay below 2**16."""


class Check(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """May *client* spend *cost* now? Empty plan or resource: none."""

    client: str
    cost: int = 1
    plan: str = ""
    resource: str = ""


class Batch(msgspec.Struct, frozen=True, gc=False):
    """Checks of one partition, sent as one record; ``partition`` is where the reply goes."""

    partition: int
    incarnation: int
    number: int
    checks: list[Check]


class SingleCheck(msgspec.Struct, frozen=True, gc=False):
    """A check published on its own."""

    check: Check
    reply_to: ReplyTo | None

    @property
    def checks(self) -> list[Check]:
        """As a batch has them: this one."""
        return [self.check]


_Count = Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class Denied(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How many checks of *client* a gateway has denied by itself, and what they would have cost in all."""

    client: str
    plan: str
    resource: str
    checks: _Count
    cost: _Count


class Denials(msgspec.Struct, frozen=True, gc=False):
    """What a gateway has denied without asking, for the trail: it decides nothing and charges nothing."""

    incarnation: int
    sums: list[Denied]


_check_list = msgspec.msgpack.Decoder(list[Check])

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
    """Header, then the checks."""
    head = HEADER.pack(VERSION, KIND_BATCH, batch.partition, batch.incarnation, batch.number)
    return head + pack(batch.checks)


def encode_denials(denials: Denials) -> bytes:
    """Header, then the sums; no reply is wanted."""
    return HEADER.pack(VERSION, KIND_DENIALS, NO_REPLY, denials.incarnation, 0) + pack(denials.sums)


def encode_update(update: Update) -> bytes:
    """A relayed limit update; its reply address travels in the body."""
    return HEADER.pack(VERSION, KIND_UPDATE, NO_REPLY, 0, update.version) + pack(update)


def encode_single(single: SingleCheck) -> bytes:
    """The JSON form that any producer may write."""
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


def decode_checks_record(value: bytes | None) -> Batch | Denials | Update | SingleCheck:
    """Read a record of ``checks``.

    Raises:
        UndecodableRecord: with the reason; :func:`reply_address` may still know who asked.
    """
    if not value:
        raise UndecodableRecord("the record has no value")
    check_size(value)
    try:
        if value[0] == 0x7B:  # {
            return _single(value)
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
            raise UndecodableRecord(f"{claimed} checks in a batch; at most {MAX_BATCH:,} are judged")
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


def _array_length(body: memoryview) -> int:
    """How long the msgpack array in *body* claims to be, known before anything is made for it."""
    if body and body[0] in (0xDC, 0xDD):
        return int.from_bytes(body[1 : 3 if body[0] == 0xDC else 5])
    return 0  # a short one, or none at all: decoding tells


def _relayed(update: Update) -> Update:
    """Return *update* if an owner can have relayed it: what cannot be enforced must not come into force."""
    if not 0 <= update.version < 2**63:
        raise UndecodableRecord(f"version {update.version} is no offset")
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
    """Partition, incarnation and number to answer a batch whose body cannot be read, if it has them."""
    if value is None or len(value) < HEADER.size or value[:2] != bytes((VERSION, KIND_BATCH)):
        return None
    _, _, partition, incarnation, number = HEADER.unpack_from(value)
    return (partition, incarnation, number) if partition >= 0 else None
