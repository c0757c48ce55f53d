"""``limit-updates``: changes of limits, as gateways and operators write them.

=================  ===============================================================================
part               contents
=================  ===============================================================================
key                JSON ``["client","alice","login"]``: kind, id, resource; kinds are ``client``,
                   ``plan``, ``default`` (with an empty id) and ``reset``
value              JSON ``{"limits": ["100/minute"]}`` or ``{"limits": "unlimited"}``; no value
                   deletes the limits; the value of a ``reset`` is ignored
header `reply-to`  ``<partition>:<id>`` in UTF-8: asks for a confirmation on ``replies``
header `order`     digits: offset in the home partition, of an update of a plan or the default
header `copy-of`   digits: version of the update that a worker repeats under its canonical key
=================  ===============================================================================

An update of a client or a reset goes to the client's partition. An update of a plan or of the default goes to
every partition: first to its home partition, then to the others, with the header ``order``. A worker relays
each update into ``checks``, where it takes effect (:mod:`stoplog.wire.checks`).

Compaction compares keys as bytes, so one key must have one spelling: that of :func:`encode_update_key`,
without blanks. A worker that has applied an update under another spelling repeats it under the canonical key.
It then overwrites the other spelling's record with :data:`MOVED`, which is no update.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from stoplog.errors import InvalidInput, UndecodableRecord
from stoplog.policy import UNLIMITED, Policy, check_id, parse_policy
from stoplog.wire.format import ReplyTo, check_size, to_json

KINDS: Final = ("client", "plan", "default", "reset")
"""Kinds of limit updates. A ``reset`` empties a client's counters."""


MOVED: Final = b'{"moved":true}'
"""Value of a record under a key that is not canonical: the canonical key has the limits."""


class UpdateKey(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The key of a record of ``limit-updates``. The id of the default is empty."""

    kind: str
    id: str = ""
    resource: str = ""


ENABLE_HOLDS: Final = UpdateKey("enable", "holds")
"""Key of the update after which a partition grants holds (:mod:`stoplog.wire.holds`). It is in ``checks``
only: a worker writes it there, and nobody else."""


class Signature(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The proof that a worker relayed an update.

    Attributes:
        key_id: Id of the relay key.
        mac: See :meth:`stoplog_worker.algorithm.update_authority.UpdateAuthority.sign`.
    """

    key_id: str
    mac: bytes


class Update(msgspec.Struct, frozen=True, array_like=True):
    """A limit update, as workers relay it into ``checks``.

    Attributes:
        version: Its offset in ``limit-updates``; 0 for :data:`ENABLE_HOLDS`.
        kind: One of :data:`KINDS`, or that of :data:`ENABLE_HOLDS`.
        id: Id of the client or plan; empty for the default.
        resource: The resource that is limited; empty for none.
        policy: The new policy; ``None`` for a deletion or a reset.
        reply_to: Where to confirm it; ``None`` if no confirmation is wanted.
        order: Offset in the home partition (:func:`stoplog.partitioning.home_of`) of an update of a plan or
            the default. By it all partitions agree which of two updates is later. -1 if the writer gave none.
        signature: The proof that a worker relayed it; ``None`` if the worker had no relay keys.
    """

    version: int
    kind: str
    id: str
    resource: str
    policy: Policy | None
    reply_to: ReplyTo | None = None
    order: int = -1
    signature: Signature | None = None

    @property
    def key(self) -> UpdateKey:
        """The key of its record."""
        return UpdateKey(self.kind, self.id, self.resource)


_update_key = msgspec.json.Decoder(UpdateKey)


class _JsonLimits(msgspec.Struct, forbid_unknown_fields=True):
    limits: Any


_json_limits = msgspec.json.Decoder(_JsonLimits)


def enabling_update() -> Update:
    """Return the update :data:`ENABLE_HOLDS`. It has no record in ``limit-updates``, and so no version."""
    return Update(0, ENABLE_HOLDS.kind, ENABLE_HOLDS.id, "", UNLIMITED)


def encode_update_key(key: UpdateKey) -> bytes:
    """Return the key of a record, such as ``["client","alice",""]``."""
    return to_json(key)


def encode_update_value(policy: Policy | None) -> bytes | None:
    """Return the value of a record, such as ``{"limits": ["100/minute"]}``; ``None`` for a deletion."""
    return None if policy is None else to_json({"limits": policy.spec()})


def decode_update(
    offset: int, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]] | None
) -> Update:
    """Return the update in a record of ``limit-updates``.

    Raises:
        UndecodableRecord: The record is no valid update; the error states the reason.
    """
    try:
        for part in (key, value):
            check_size(part or b"")
        named = _update_key.decode(key or b"")
        check_key(named)
        policy = None
        if value is not None and named.kind != "reset":
            policy = parse_policy(_json_limits.decode(value).limits)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not a limit update: {exc}") from exc
    except InvalidInput as exc:
        raise UndecodableRecord(f"not a valid limit update: {exc}") from exc
    order = _number(headers, "order")
    return Update(offset, named.kind, named.id, named.resource, policy, _reply_to(headers), order)


def check_key(key: UpdateKey) -> None:
    """Refuse a key under which no limits can be stored.

    Raises:
        InvalidInput: The id or resource is invalid.
        UndecodableRecord: The kind is unknown, or the default has an id.
    """
    if key.kind not in KINDS:
        raise UndecodableRecord(f"unknown kind {key.kind!r}; use one of {', '.join(KINDS)}")
    if key.kind != "default":
        check_id(key.id, "id")
    elif key.id:
        raise UndecodableRecord("the default has no id; leave it empty")
    if key.resource:
        check_id(key.resource, "resource")


def _number(headers: list[tuple[str, bytes]] | None, wanted: str) -> int:
    for name, raw in headers or ():
        if name == wanted and raw and raw.isdigit() and len(raw) <= 18:
            return int(raw)
    return -1


def copied_version(headers: list[tuple[str, bytes]] | None) -> int:
    """Return the version of the update that a record with these headers repeats; -1 if it repeats none."""
    return _number(headers, "copy-of")


def copy_header(version: int) -> tuple[str, bytes]:
    """Return the header of a record that repeats the update *version* under its canonical key."""
    return "copy-of", str(version).encode()


def _reply_to(headers: list[tuple[str, bytes]] | None) -> ReplyTo | None:
    for name, raw in headers or ():
        if name == "reply-to" and raw:
            partition, _, id_ = raw.decode(errors="replace").partition(":")
            if partition.isascii() and partition.isdigit() and len(partition) <= 10 and id_:
                return ReplyTo(int(partition), id_)
    return None


def reply_to_header(to: ReplyTo) -> tuple[str, bytes]:
    """Return the header that asks for a confirmation of an update."""
    return "reply-to", f"{to.partition}:{to.id}".encode()


def order_header(order: int) -> tuple[str, bytes]:
    """Return the header with the offset, in its home partition, of an update of a plan or the default."""
    return "order", str(order).encode()
