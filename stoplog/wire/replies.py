"""``replies``: the replies to checks and limit updates. Records have no key.

A batch gets a binary :class:`Reply`::

    offset  size  type      field
    0       1     u8        version: 1
    1       1     u8        kind: "B" (0x42) answers, "E" (0x45) error
    2       8     u64       incarnation: that of the batch
    10      8     u64       number: that of the batch
    18      8     i64       offset: of the batch in checks
    26      8     i64       applied: offset in limit-updates up to which all updates are applied; -1: none
    34      -     msgpack   kind B: an array with one answer per check, in order
    34      -     UTF-8     kind E: the reason why the batch could not be decided

    answer  msgpack type    meaning
            nil             the check was decided before a restart; its answer is lost
            string          the reason why this check could not be decided
            array           a decision:

    index   msgpack type    field of a decision
    0       boolean         allowed
    1       integer or nil  limit: the one nearest to being used up; nil: unlimited
    2       integer or nil  remaining: of that limit
    3       integer         reset_after_ms
    4       integer or nil  retry_after_ms
    5       integer         policy_version

A batch or settlements about holds get a reply of format version 2 (:mod:`stoplog.wire.holds`).

A single check or a limit update that names a reply partition gets JSON::

    {"id": ..., "allowed": ..., "limit": ..., ...}              a decision's fields
    {"id": ..., ..., "held_to": [...], "windows": [...]}        for a cost of 0: LookupReply
    {"id": ..., ..., "windows": [...], "holds": {...}}          the same, if its partition grants holds
    {"id": ..., "error": "..."}                                 a check that could not be decided
    {"id": ..., "applied": true, "version": 41, "partition": 1} an update: UpdateReply
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error
from typing import Any, Final

import msgspec

from stoplog.errors import UndecodableRecord
from stoplog.wire.format import KIND_BATCH, VERSION, ReplyTo, pack, to_json
from stoplog.wire.holds import HOLDS_VERSION, KIND_SETTLEMENTS, Grant
from stoplog.wire.limit_updates import UpdateKey

_REPLY: Final = Struct(">BBQQqq")

KIND_ERROR: Final = ord("E")
"""Kind of a reply to a batch that could not be decided."""


class Decision(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The store's answer to one check.

    Attributes:
        allowed: Whether the client may go ahead.
        limit: The limit that is nearest to being used up; ``None`` if the client is unlimited.
        remaining: What remains of that limit; ``None`` if the client is unlimited.
        reset_after_ms: Milliseconds until that limit is whole again if nothing more is spent.
        retry_after_ms: Milliseconds until the same check can pass; 0 if it is allowed, ``None`` if waiting
            cannot help (the cost exceeds the limit).
        policy_version: Offset in ``limit-updates`` of the policy that decided; -1 for the built-in default.
    """

    allowed: bool
    limit: int | None
    remaining: int | None
    reset_after_ms: int
    retry_after_ms: int | None
    policy_version: int


class HeldDecision(Decision, frozen=True, array_like=True, gc=False):
    """A decision on a check with holds, in a reply of format version 2.

    Attributes:
        firm_ms: Milliseconds for which a denial stands if all holds are returned now; 0 if the check is
            allowed, ``None`` if only a change of limits ends it, -1 if nothing is held: then it stands for
            ``retry_after_ms``.
        grant: The hold that was granted with the check.
        settled: The answer to each settlement (:data:`Settled`).
        reason: The reason of a denial that no limit caused; else empty.
    """

    firm_ms: int | None = -1
    grant: Grant | None = None
    settled: tuple[int, ...] = ()
    reason: str = ""


Settled = tuple[int, ...]
"""The answer to a row of settlements. For each of them: :data:`stoplog.wire.holds.SETTLED_NOW`,
:data:`stoplog.wire.holds.NOT_OPEN`, or what was used of a reservation that was settled before."""


class Reply(msgspec.Struct, frozen=True, gc=False):
    """The reply to one batch.

    Attributes:
        incarnation: That of the batch: the run of the sender.
        number: That of the batch.
        offset: Offset of the batch in ``checks``.
        applied: Offset in ``limit-updates`` up to which all updates are applied; -1 for none.
        answers: One answer per check, in order. ``None``: decided before a restart, and the answer is lost.
            A text: the reason why this check could not be decided.
        error: The reason why the whole batch could not be decided; then there are no answers.
    """

    incarnation: int
    number: int
    offset: int
    applied: int
    answers: list[Decision | str | None]
    error: str | None = None


class UpdateReply(msgspec.Struct, frozen=True):
    """A worker's reply to a limit update.

    Attributes:
        id: The id that the update's ``reply-to`` header gave.
        applied: Whether the partition has applied it.
        version: The update's offset in ``limit-updates``.
        partition: The partition that applied it.
        existed: Whether there was anything to replace, to delete or to reset; ``None`` if that is unknown.
            Workers of release 0.2.0 omit it.
    """

    id: str
    applied: bool = False
    version: int = -1
    partition: int = -1
    existed: bool | None = None


class WindowUse(msgspec.Struct, frozen=True):
    """The use of one limit.

    `used` is what counts against it now: `held` of it is held by leases and reservations, and the rest is
    charged. After `reset_after_ms` nothing counts, if no more is spent.
    """

    limit: str
    used: int
    reset_after_ms: int
    held: int = 0


class OpenHolds(msgspec.Struct, frozen=True):
    """The open holds of one kind, as sums.

    `open` is their number, and `units` what they hold together. The first of them ends after `next_end_ms`
    milliseconds, unless it is settled before; null if none is open.
    """

    open: int = 0
    units: int = 0
    next_end_ms: int | None = None


class HoldsInUse(msgspec.Struct, frozen=True):
    """The open holds of a client and resource: reservations of API callers, and leases of gateways.

    A lease counts in full until its gateway reports what it used, so some of its units may be spent already.
    """

    reservations: OpenHolds = OpenHolds()
    leases: OpenHolds = OpenHolds()


class LookupReply(msgspec.Struct, frozen=True):
    """The description of a client in the reply to a single check of cost 0, besides the decision.

    Attributes:
        id: The id that the check's ``reply_to`` gave.
        policy_version: Offset in ``limit-updates`` of the policy in force; -1 for the built-in default.
        held_to: Key of that policy; ``None`` for the built-in default.
        windows: The use of every limit, empty for an unlimited client. Workers of older versions omit it.
        error: The reason why the check could not be decided.
        holds: What is held. A partition that grants no holds omits it, and so does a worker of release 0.2.0:
            then nothing is held.
    """

    id: str
    policy_version: int = -1
    held_to: UpdateKey | None = None
    windows: list[WindowUse] | None = None
    error: str | None = None
    holds: HoldsInUse = HoldsInUse()


_answers = msgspec.msgpack.Decoder(list[Decision | str | None])
_held_answers = msgspec.msgpack.Decoder(list[HeldDecision | str | None])
_settled_answers = msgspec.msgpack.Decoder(list[Settled | str | None])


def encode_reply(reply: Reply) -> bytes:
    """Return the value of a binary reply."""
    kind = KIND_BATCH if reply.error is None else KIND_ERROR
    head = _REPLY.pack(VERSION, kind, reply.incarnation, reply.number, reply.offset, reply.applied)
    return head + (pack(reply.answers) if reply.error is None else reply.error.encode())


class SettlementReply(msgspec.Struct, frozen=True):
    """The reply to one record of settlements: an answer for each row, in order."""

    incarnation: int
    number: int
    offset: int
    applied: int
    answers: list[Settled | str | None]


def encode_held_reply(reply: Reply | SettlementReply) -> bytes:
    """Return the value of a reply of format version 2."""
    kind = KIND_BATCH if isinstance(reply, Reply) else KIND_SETTLEMENTS
    head = _REPLY.pack(HOLDS_VERSION, kind, reply.incarnation, reply.number, reply.offset, reply.applied)
    return head + pack(reply.answers)


def decode_held_reply(value: bytes) -> Reply | SettlementReply:
    """Return the reply in a binary value of format version 2.

    Raises:
        UndecodableRecord: The value is no such reply.
    """
    try:
        version, kind, incarnation, number, offset, applied = _REPLY.unpack_from(value)
        body = memoryview(value)[_REPLY.size :]
        if version == HOLDS_VERSION and kind == KIND_BATCH:
            answers: list[Any] = _held_answers.decode(body)
            return Reply(incarnation, number, offset, applied, answers)
        if version == HOLDS_VERSION and kind == KIND_SETTLEMENTS:
            return SettlementReply(incarnation, number, offset, applied, _settled_answers.decode(body))
    except (msgspec.MsgspecError, struct_error, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not a reply: {exc}") from exc
    raise UndecodableRecord(f"reply format {version}/{kind} is not known here; upgrade the gateway")


def decode_any_reply(value: bytes) -> Reply | SettlementReply:
    """Return the reply in a binary value of any known format version.

    Raises:
        UndecodableRecord: The value is no reply.
    """
    return decode_held_reply(value) if value[:1] == b"\x02" else decode_reply(value)


def as_held(decision: Decision) -> HeldDecision:
    """Return *decision* as the receiver of a reply of format version 2 decodes it."""
    if isinstance(decision, HeldDecision):
        return decision
    return HeldDecision(*(getattr(decision, name) for name in Decision.__struct_fields__))


def decode_reply(value: bytes) -> Reply:
    """Return the reply in a binary value.

    Raises:
        UndecodableRecord: The value is no reply.
    """
    try:
        version, kind, incarnation, number, offset, applied = _REPLY.unpack_from(value)
        if version != VERSION or kind not in (KIND_BATCH, KIND_ERROR):
            raise UndecodableRecord(f"reply format {version}/{kind} is not known here; upgrade the gateway")
        body = memoryview(value)[_REPLY.size :]
        if kind == KIND_ERROR:
            return Reply(incarnation, number, offset, applied, [], bytes(body).decode(errors="replace"))
        return Reply(incarnation, number, offset, applied, _answers.decode(body))
    except (msgspec.MsgspecError, struct_error, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not a reply: {exc}") from exc


def reply_incarnation(value: bytes) -> int | None:
    """Return the incarnation of a reply without decoding its answers; ``None`` if it is too short."""
    return int(_REPLY.unpack_from(value)[2]) if len(value) >= _REPLY.size else None


def encode_json_reply(to: ReplyTo, **facts: Any) -> bytes:
    """Return a JSON reply to a single check or an update: the id of *to*, and *facts*."""
    return to_json({"id": to.id, **facts})
