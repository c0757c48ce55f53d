"""``replies``: the answers to checks and updates.

A batch is answered by a binary :class:`Reply`; a single check or an update by JSON ``{"id": ..., ...}``. The reply
to a single check of cost 0 also describes each window.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error
from typing import Any, Final

import msgspec

from stoplog.errors import UndecodableRecord
from stoplog.wire.format import KIND_BATCH, VERSION, ReplyTo, pack, to_json
from stoplog.wire.limit_updates import UpdateKey

_REPLY: Final = Struct(">BBQQqq")

KIND_ERROR: Final = ord("E")


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


class UpdateReply(msgspec.Struct, frozen=True):
    """A worker's reply to a limit update: whether one partition applied it, and as which version.

    ``version`` is the update's offset in ``limit-updates``.
    """

    id: str
    applied: bool = False
    version: int = -1
    partition: int = -1


class WindowUse(msgspec.Struct, frozen=True):
    """A limit: `used` counts against it now, and in `reset_after_ms` nothing will, if no more is spent."""

    limit: str
    used: int
    reset_after_ms: int


class LookupReply(msgspec.Struct, frozen=True):
    """A worker's reply to a single check of cost 0, which describes every window.

    ``held_to`` is the key of the limits in force, ``None`` for the built-in default. ``windows`` is empty for an
    unlimited client, and ``None`` from a worker of an older version. ``error`` is set if the worker could not
    judge the check.
    """

    id: str
    policy_version: int = -1
    held_to: UpdateKey | None = None
    windows: list[WindowUse] | None = None
    error: str | None = None


_answers = msgspec.msgpack.Decoder(list[Decision | str | None])


def encode_reply(reply: Reply) -> bytes:
    """Header, then the answers, or the error."""
    kind = KIND_BATCH if reply.error is None else KIND_ERROR
    head = _REPLY.pack(VERSION, kind, reply.incarnation, reply.number, reply.offset, reply.applied)
    return head + (pack(reply.answers) if reply.error is None else reply.error.encode())


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
    return to_json({"id": to.id, **facts})
