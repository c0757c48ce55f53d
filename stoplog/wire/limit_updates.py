"""``limit-updates``: changes of limits, as administrators write them.

Key: JSON ``["client", "alice", "login"]`` (kind, id, resource). Value: JSON ``{"limits": [...]}``; a record
without a value deletes. A header ``reply-to`` of ``<partition>:<id>`` asks for a confirmation on ``replies`` when the update
is applied. Updates of plans and of the default go to every partition: first to their home partition, then to the
others with a header ``order`` that carries the offset in the home partition.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from stoplog.errors import InvalidInput, UndecodableRecord
from stoplog.policy import Policy, check_id, parse_policy
from stoplog.wire.format import ReplyTo, check_size, to_json

KINDS: Final = ("client", "plan", "default", "reset")
"""What a limit update can be about; ``reset`` empties a client's counters."""


class UpdateKey(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Key of a ``limit-updates`` record; ``id`` is empty for the default."""

    kind: str
    id: str = ""
    resource: str = ""


class Update(msgspec.Struct, frozen=True, array_like=True):
    """A limit update as it comes by in ``checks``; ``version`` is its offset in ``limit-updates``.

    ``policy`` is ``None`` for a deletion and for a reset. ``order``: of a plan's or the default's update, its
    offset in the home partition (:func:`stoplog.partitioning.home_of`), by which all partitions agree on
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


_update_key = msgspec.json.Decoder(UpdateKey)


class _JsonLimits(msgspec.Struct, forbid_unknown_fields=True):
    limits: Any


_json_limits = msgspec.json.Decoder(_JsonLimits)


def encode_update_key(key: UpdateKey) -> bytes:
    """``["client", "alice", ""]``."""
    return to_json(key)


def encode_update_value(policy: Policy | None) -> bytes | None:
    """``{"limits": ["100/minute"]}``; ``None`` deletes."""
    return None if policy is None else to_json({"limits": policy.spec()})


def decode_update(
    offset: int, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]] | None
) -> Update:
    """Read a record of ``limit-updates``.

    Raises:
        UndecodableRecord: with the reason.
    """
    try:
        for part in (key, value):
            check_size(part or b"")
        what = _update_key.decode(key or b"")
        check_key(what)
        policy = None
        if value is not None and what.kind != "reset":
            policy = parse_policy(_json_limits.decode(value).limits)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not a limit update: {exc}") from exc
    except InvalidInput as exc:
        raise UndecodableRecord(f"not a valid limit update: {exc}") from exc
    return Update(offset, what.kind, what.id, what.resource, policy, _reply_to(headers), _order(headers))


def check_key(key: UpdateKey) -> None:
    """Refuse a key that no limit can be stored under.

    Raises:
        InvalidInput: its id or resource is invalid.
        UndecodableRecord: its kind is unknown, or the default has an id.
    """
    if key.kind not in KINDS:
        raise UndecodableRecord(f"unknown kind {key.kind!r}; use one of {', '.join(KINDS)}")
    if key.kind != "default":
        check_id(key.id, "id")
    elif key.id:
        raise UndecodableRecord("the default has no id")
    if key.resource:
        check_id(key.resource, "resource")


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
