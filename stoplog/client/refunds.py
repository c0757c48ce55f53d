"""Refunds: what a caller gives back to a client that was charged and had reserved nothing.

A refund has an id. The log remembers it for one window, so a caller that got no answer repeats the call. The
id of the log is made of the caller's: so every gateway knows a repetition, also after a restart.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import Final, Literal

import msgspec

from stoplog.client.answer import Answer, HeldAnswer
from stoplog.errors import InvalidInput
from stoplog.policy import check_id
from stoplog.wire.holds import FIRST_RESERVED_NUMBER, REFUNDED_BEFORE, SAME_ID, HoldId

REFUNDS: Final = ("refunded", "repeated", "not_refundable", "unlimited", "unconfirmed")
"""What becomes of refunds, as the metric counts it."""


class Refund(msgspec.Struct, frozen=True):
    """What became of a refund.

    Attributes:
        id: Its id. A call with the same client, resource and id is a repetition.
        state: ``refunded``: by this call or an earlier one. ``not_refundable``: the client's limits do not
            permit refunds. ``unlimited``: no limit of the client has a window, so it was never charged.
            ``unconfirmed``: the store did not answer in time; repeat the call.
        units: Units that were returned, by this call or the earlier one: at most those that were charged in
            the last window. If the limits have several windows, a shorter one may have got fewer back.
            ``None`` in all other states.
        repeated: Whether an earlier call had made it. This one has changed nothing.
        reason: Why the store did not answer, one of :data:`stoplog.client.fail_open.REASONS`; else ``None``.
    """

    id: str
    state: Literal["refunded", "not_refundable", "unlimited", "unconfirmed"]
    units: int | None = None
    repeated: bool = False
    reason: str | None = None


def new_refund_id() -> str:
    """Return an id that nobody has used."""
    return secrets.token_urlsafe(16)


def check_refund_id(refund_id: str, field: str = "refund_id") -> str:
    """Return *refund_id* if a refund may have it.

    Raises:
        InvalidId: It is not 1 to 256 bytes of UTF-8 without control characters; names *field*.
    """
    return check_id(refund_id, field)


def hold_id_of(refund_id: str) -> HoldId:
    """Return the id by which the log remembers a refund.

    >>> hold_id_of("order 7") == hold_id_of("order 7") != hold_id_of("order 8")
    True
    """
    digest = sha256(refund_id.encode()).digest()
    # As large as the numbers of reservations: no lease has such a number.
    return int.from_bytes(digest[:8]), FIRST_RESERVED_NUMBER | int.from_bytes(digest[8:16]), 0


def refund_of(answer: Answer, refund_id: str) -> Refund:
    """Return what became of the refund with the id *refund_id*, to which the store gave *answer*.

    Raises:
        InvalidInput: A reservation has the id.
    """
    if not isinstance(answer, HeldAnswer):
        return Refund(refund_id, "unconfirmed", reason=answer.reason)
    if answer.detail == SAME_ID:
        raise InvalidInput("refund_id", "the id of a reservation", "use another id")
    if answer.grant is not None:
        return Refund(refund_id, "refunded", answer.grant.units, answer.detail == REFUNDED_BEFORE)
    return Refund(refund_id, "not_refundable" if answer.detail else "unlimited")
