"""What travels on the topics, to bytes and back.

``checks``
    *batches*, *denials* and *updates* in binary, as gateways and owners write them: a fixed header
    (:data:`HEADER`), then msgpack. The header can be read even where the body cannot, so that a
    broken batch is answered with an error. *Single checks* in JSON, as any producer writes them::

        {"client_id": "alice", "cost": 1, "reply_to": {"partition": 3, "id": "req-17"}}

``limit-updates``
    key ``["client", "alice", "login"]`` (kind, id, resource), value ``{"limits": [...]}``; no value
    deletes. A header ``reply-to`` of ``<partition>:<id>`` asks for a word when it is applied. Plans and
    the default go to every partition: to their home first, to the others with a header ``order``.
``replies``
    binary :class:`Reply` for batches; JSON ``{"id": ..., ...}`` for single checks and updates. That of a
    single check of cost 0 tells of each window besides (:meth:`streams.ledger.Ledger.standing`).
``nodes``
    JSON :class:`NodeBeat`, keyed by node id.

The first byte of everything binary is the format's version, so that a reader can refuse what it
does not know; JSON begins with ``{``, which is no version.
"""

from __future__ import annotations

from operator import methodcaller
from struct import Struct
from struct import error as struct_error
from typing import Annotated, Any, Final

import msgspec

from streams.contract.errors import InvalidInput, UndecodableRecord
from streams.contract.policy import MAX_COST, Policy, check_cost, check_id, check_policy, parse_policy

VERSION: Final = 1

HEADER: Final = Struct(">BBiQQ")
"""Version, kind, reply partition (-1: no reply wanted), incarnation of the sender, batch number."""

KIND_BATCH: Final = ord("B")
KIND_UPDATE: Final = ord("U")
KIND_DENIALS: Final = ord("D")
KIND_ERROR: Final = ord("E")

NO_REPLY: Final = -1

MAX_BATCH: Final = 10_000
"""Checks in one batch: the longest list that one HTTP call may bring."""

MAX_RECORD: Final = 4 * 1024 * 1024
"""Bytes of a record's value, unpacked; a topic's ``max.message.bytes`` bounds only what is compressed."""

POSITION_BITS: Final = 16
"""A position is ``offset << 16 | index in the batch``; MAX_BATCH must stay below 2**16."""

KINDS: Final = ("client", "plan", "default", "reset")
"""What a limit update can be about; ``reset`` empties a client's counters."""


class Check(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """May *client* spend *cost* now? Empty plan or resource: none."""

    client: str
    cost: int = 1
    plan: str = ""
    resource: str = ""


class Decision(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The answer to one check.

    ``limit`` and ``remaining`` are those of the limit that is nearest to being used up, ``None`` when
    unlimited. ``reset_after_ms``: when that limit is whole again if nothing more is spent.
    ``retry_after_ms``: 0 if allowed; ``None`` if waiting cannot help (cost above the limit).
    ``policy_version``: the offset in ``limit-updates`` of the policy that decided, -1 for the built-in
    default.
    """

    allowed: bool
    limit: int | None
    remaining: int | None
    reset_after_ms: int
    retry_after_ms: int | None
    policy_version: int


class Batch(msgspec.Struct, frozen=True, gc=False):
    """Checks of one partition, sent as one record; ``partition`` is where the reply goes."""

    partition: int
    incarnation: int
    number: int
    checks: list[Check]


class ReplyTo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a JSON reply goes, and the id it carries."""

    partition: int
    id: str


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


class Update(msgspec.Struct, frozen=True, array_like=True):
    """A limit update as it comes by in ``checks``; ``version`` is its offset in ``limit-updates``.

    ``policy`` is ``None`` for a deletion and for a reset. ``order``: of a plan's or the default's update, its
    offset in the home partition (:func:`streams.contract.topics.home_of`), by which all partitions agree on
    which of two is the later; -1 if whoever wrote it did not say.
    """

    version: int
    kind: str
    id: str
    resource: str
    policy: Policy | None
    reply_to: ReplyTo | None = None
    order: int = -1

    @property
    def key(self) -> UpdateKey:
        """The key it was written under."""
        return UpdateKey(self.kind, self.id, self.resource)


class UpdateKey(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Key of a ``limit-updates`` record; ``id`` is empty for the default."""

    kind: str
    id: str = ""
    resource: str = ""


class Reply(msgspec.Struct, frozen=True, gc=False):
    """Answers to one batch, in its order.

    ``answers``: a decision; ``None`` where the log had already decided it before a restart; a text
    where this one check could not be judged. ``error`` is set instead when nothing could be.
    ``applied``: all updates up to this offset of ``limit-updates`` had been applied.
    """

    incarnation: int
    number: int
    offset: int
    applied: int
    answers: list[Decision | str | None]
    error: str | None = None


class NodeBeat(msgspec.Struct, frozen=True):
    """A worker or gateway saying that it is there, and how it is; a worker also in which lane."""

    id: str
    role: str
    version: str
    host: str
    at_ms: int
    partitions: dict[int, PartitionBeat] = {}
    stopping: bool = False
    lane: str = ""


class PartitionBeat(msgspec.Struct, frozen=True):
    """What a worker says of one partition: its state, and records not yet judged."""

    state: str
    lag: int = 0


_REPLY: Final = Struct(">BBQQqq")
_check_list = msgspec.msgpack.Decoder(list[Check])
_denied_list = msgspec.msgpack.Decoder(list[Denied])
_answers = msgspec.msgpack.Decoder(list[Decision | str | None])
_update = msgspec.msgpack.Decoder(Update)
_update_key = msgspec.json.Decoder(UpdateKey)
_beat = msgspec.json.Decoder(NodeBeat)
_pack = msgspec.msgpack.Encoder().encode
_json = msgspec.json.Encoder().encode

# Given a name that is not UTF-8, confluent-kafka's method sets an exception and returns a list all the same,
# with a null pointer in it. A call by `methodcaller` raises then; one written out is specialized by CPython
# once it has run a few times, no longer looks, and the process dies. So it does at a second call.
_headers = methodcaller("headers")


class _JsonReplyTo(msgspec.Struct, forbid_unknown_fields=True):
    partition: int
    id: str


class _JsonCheck(msgspec.Struct, forbid_unknown_fields=True):
    client_id: str
    cost: int = 1
    plan: str | None = None
    resource: str | None = None
    reply_to: _JsonReplyTo | None = None


class _JsonLimits(msgspec.Struct, forbid_unknown_fields=True):
    limits: Any


_json_check = msgspec.json.Decoder(_JsonCheck)
_json_limits = msgspec.json.Decoder(_JsonLimits)


# --- checks ---------------------------------------------------------------------------------


def encode_batch(batch: Batch) -> bytes:
    """Header, then the checks."""
    head = HEADER.pack(VERSION, KIND_BATCH, batch.partition, batch.incarnation, batch.number)
    return head + _pack(batch.checks)


def encode_denials(denials: Denials) -> bytes:
    """Header, then the sums; no reply is wanted."""
    return HEADER.pack(VERSION, KIND_DENIALS, NO_REPLY, denials.incarnation, 0) + _pack(denials.sums)


def encode_update(update: Update) -> bytes:
    """A relayed limit update; its reply address travels in the body."""
    return HEADER.pack(VERSION, KIND_UPDATE, NO_REPLY, 0, update.version) + _pack(update)


def encode_single(single: SingleCheck) -> bytes:
    """The JSON form that any producer may write."""
    check, to = single.check, single.reply_to
    return _json(
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
    _check_size(value)
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


def _check_size(value: bytes) -> None:
    if len(value) > MAX_RECORD:
        raise UndecodableRecord(f"{len(value):,} bytes; a record has at most {MAX_RECORD:,}")


def _array_length(body: memoryview) -> int:
    """How long the msgpack array in *body* claims to be, known before anything is made for it."""
    if body and body[0] in (0xDC, 0xDD):
        return int.from_bytes(body[1 : 3 if body[0] == 0xDC else 5])
    return 0  # a short one, or none at all: decoding tells


def _relayed(update: Update) -> Update:
    """Return *update* if an owner can have relayed it: what cannot be enforced must not come into force."""
    if not 0 <= update.version < 2**63:
        raise UndecodableRecord(f"version {update.version} is no offset")
    _check_key(update.key)
    if update.policy is not None:
        check_policy(update.policy)
    return update


def _check_key(key: UpdateKey) -> None:
    if key.kind not in KINDS:
        raise UndecodableRecord(f"unknown kind {key.kind!r}; use one of {', '.join(KINDS)}")
    if key.kind != "default":
        check_id(key.id, "id")
    elif key.id:
        raise UndecodableRecord("the default has no id")
    if key.resource:
        check_id(key.resource, "resource")


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


# --- replies --------------------------------------------------------------------------------


def encode_reply(reply: Reply) -> bytes:
    """Header, then the answers, or the error."""
    kind = KIND_BATCH if reply.error is None else KIND_ERROR
    head = _REPLY.pack(VERSION, kind, reply.incarnation, reply.number, reply.offset, reply.applied)
    return head + (_pack(reply.answers) if reply.error is None else reply.error.encode())


def decode_reply(value: bytes) -> Reply:
    """Read a binary reply.

    Raises:
        UndecodableRecord: not one.
    """
    try:
        version, kind, incarnation, number, offset, applied = _REPLY.unpack_from(value)
        if version != VERSION or kind not in (KIND_BATCH, KIND_ERROR):
            raise UndecodableRecord(f"reply format {version}/{kind} is not known here")
        body = memoryview(value)[_REPLY.size :]
        if kind == KIND_ERROR:
            return Reply(incarnation, number, offset, applied, [], bytes(body).decode(errors="replace"))
        return Reply(incarnation, number, offset, applied, _answers.decode(body))
    except (msgspec.MsgspecError, struct_error, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not a reply: {exc}") from exc


def reply_incarnation(value: bytes) -> int | None:
    """Whose reply it is, without reading its answers; ``None`` if it is too short to be one."""
    return int(_REPLY.unpack_from(value)[2]) if len(value) >= _REPLY.size else None


def encode_json_reply(to: ReplyTo, **facts: Any) -> bytes:
    """A reply to a single check or an update: its id and the facts."""
    return _json({"id": to.id, **facts})


# --- limit-updates --------------------------------------------------------------------------


def encode_update_key(key: UpdateKey) -> bytes:
    """``["client", "alice", ""]``."""
    return _json(key)


def encode_update_value(policy: Policy | None) -> bytes | None:
    """``{"limits": ["100/minute"]}``; ``None`` deletes."""
    return None if policy is None else _json({"limits": policy.spec()})


def decode_update(
    offset: int, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]] | None
) -> Update:
    """Read a record of ``limit-updates``.

    Raises:
        UndecodableRecord: with the reason.
    """
    try:
        for part in (key, value):
            _check_size(part or b"")
        what = _update_key.decode(key or b"")
        _check_key(what)
        policy = None
        if value is not None and what.kind != "reset":
            policy = parse_policy(_json_limits.decode(value).limits)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not a limit update: {exc}") from exc
    except InvalidInput as exc:
        raise UndecodableRecord(f"not a valid limit update: {exc}") from exc
    return Update(offset, what.kind, what.id, what.resource, policy, _reply_to(headers), _order(headers))


def headers_of(message: Any) -> list[tuple[str, bytes]] | None:
    """The headers of *message*, a record as consumed; to be called once a message.

    Raises:
        UndecodableRecord: with the reason.
    """
    try:
        return _headers(message)  # type: ignore[no-any-return]
    except (SystemError, UnicodeDecodeError) as exc:
        # confluent-kafka: "returned a result with an exception set".
        raise UndecodableRecord("a header has a name that is not UTF-8") from exc


def _order(headers: list[tuple[str, bytes]] | None) -> int:
    for name, raw in headers or ():
        if name == "order" and raw and raw.isdigit() and len(raw) <= 18:
            return int(raw)
    return -1


def _reply_to(headers: list[tuple[str, bytes]] | None) -> ReplyTo | None:
    for name, raw in headers or ():
        if name == "reply-to" and raw:
            partition, _, id_ = raw.decode(errors="replace").partition(":")
            if partition.isascii() and partition.isdigit() and len(partition) <= 10 and id_:
                return ReplyTo(int(partition), id_)
    return None


def reply_to_header(to: ReplyTo) -> tuple[str, bytes]:
    """The header that asks for a word when an update is applied."""
    return "reply-to", f"{to.partition}:{to.id}".encode()


def order_header(order: int) -> tuple[str, bytes]:
    """The header that says where in its home partition a plan's or the default's update stands."""
    return "order", str(order).encode()


# --- nodes ----------------------------------------------------------------------------------


def encode_beat(beat: NodeBeat) -> bytes:
    """JSON."""
    return _json(beat)


def decode_beat(value: bytes | None) -> NodeBeat:
    """Read a beat.

    Raises:
        UndecodableRecord: not one.
    """
    try:
        return _beat.decode(value or b"")
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not a beat: {exc}") from exc
