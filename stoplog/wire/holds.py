"""Holds in ``checks`` and ``replies``: units that the log grants and that are not spent yet.

A hold is a *lease* (the sender may admit so many requests by itself) or a *reservation* (the cost is known
only later). Records about holds have format version 2. Workers refuse them until the partition's log contains
the update :data:`stoplog.wire.limit_updates.ENABLE_HOLDS`. A batch of version 2 has the header of
:mod:`stoplog.wire.checks`, and this body::

    index   msgpack type    field
    0       array           checks: as in version 1
    1       array           rows: each for one of the checks, in their order

    row     msgpack type    field
    0       integer         index of the check
    1       array or nil    ask
    2       array           settlements; they precede the check

    ask     msgpack type    field
    0       integer         kind: 0 lease, 1 reservation, 2 charge, 3 refund
    1       array           id of the hold: [incarnation, number, index]
    2       integer         number: of a lease, it rises with each ask of a holder; 1 for a refund whose id is
                            to be remembered; else 0
    3       integer         want: units of a lease, at most; a reservation holds the cost of its check; units
                            of a charge or a refund
    4       integer         ttl_ms: 1 to 3,600,000
    5       array           keep: ids of the holder's leases that stay open

    settlement              field
    0       array           id of the hold
    1       integer         used: 0 to 1,000,000
    2       boolean         partial: the rest of the hold stays open

A *charge* or a *refund* is no hold: it changes the charges at once, after the settlements. Its check has the
cost 0, and is always allowed. A charge is made although it exceeds the limits. A refund is made if the policy
is refundable. If its id is remembered, a repetition within one window (the client's longest) changes nothing.

Settlements without a check are in a record of kind ``S`` (0x53). Its body is an array of rows, each
``[client, resource, settlements]``.

A reply of version 2 has the header of :mod:`stoplog.wire.replies`. For a batch, a decision may have more
fields than in version 1, all of them or none::

    index   msgpack type    field
    6       integer or nil  firm_ms: how long the denial stands if all holds are returned now; nil: until the
                            limits change; -1: nothing is held, so it stands for retry_after_ms
    7       array or nil    grant: [units, ttl_ms]; nil: no hold was granted. Of a refund: [units that it, or
                            the first of its repetitions, returned, 0]; nil: it was not made
    8       array           settled: for each settlement, an integer: -1 if the hold was open and is settled
                            now; -2 if it is not known (never granted, or over); else the hold is a
                            reservation that was settled before, and this is what was used of it
    9       string          reason of a denial that no limit caused, or why a refund was not made (now); else
                            empty

For a record of settlements (kind ``S``), each answer is the array *settled*, a reason, or nil.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from stoplog.policy import MAX_COST, MAX_IN_FLIGHT

HOLDS_VERSION: Final = 2
"""Format version of batches, settlements and replies with holds."""

KIND_SETTLEMENTS: Final = ord("S")

SETTLED_NOW: Final = -1
"""Answer to a settlement: the hold was open, and is settled now, or in part."""

NOT_OPEN: Final = -2
"""Answer to a settlement: there is no such hold. It was never granted, or it is over."""

LEASE: Final = 0
RESERVATION: Final = 1
CHARGE: Final = 2
REFUND: Final = 3

MAX_TTL_MS: Final = 3_600_000
"""Longest time to live of a hold: one hour."""

MIN_LEASE_MS: Final = 100
"""Milliseconds below which no lease is granted: its reply may take as long."""

MAX_LEASE_MS: Final = 10_000
"""Longest time to live of a lease, ms. A holder that died keeps its units for so long."""

MAX_RESERVATIONS: Final = MAX_IN_FLIGHT
"""Open reservations of one client and resource: a state must fit into a changelog record."""

MAX_SETTLED: Final = 64
"""Settled reservations of one client and resource that are remembered, each until it would have ended."""

MAX_REFUNDS: Final = 1_000
"""Refunds of one client and resource whose ids are remembered, each for the longest window."""

MAX_LEASES: Final = 64
"""Open leases of one client and resource."""

TOO_MANY_RESERVATIONS: Final = f"{MAX_RESERVATIONS:,} reservations are open: settle some of them first"

NOT_REFUNDABLE: Final = 'the limits are not refundable: add "refundable" to them'

FIRST_RESERVED_NUMBER: Final = 1 << 63
"""Smallest number in the id of a reservation, and of a refund that is remembered. Those of leases are
smaller, so that no caller can settle a lease."""

REFUNDED_BEFORE: Final = "the refund with this id was made before"

SAME_ID: Final = "a hold of another kind with this id is open: use another id"

SETTLED_ID: Final = "the reservation with this id is settled already: use another id"

_Natural = Annotated[int, msgspec.Meta(ge=0)]
_Units = Annotated[int, msgspec.Meta(ge=0, le=MAX_COST)]

HoldId = tuple[_Natural, _Natural, _Natural]
"""Incarnation of the process that asked, a number, and an index. It is chosen before the record is sent."""


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """A request for a hold, or for a charge or a refund.

    Attributes:
        kind: :data:`LEASE`, :data:`RESERVATION`, :data:`CHARGE` or :data:`REFUND`.
        id: Id of the hold, the charge or the refund.
        number: For a lease: it rises with each ask of the holder. An ask closes leases with smaller numbers.
            For a refund: 1 if its id is to be remembered. Else 0.
        want: Units of a lease, at most. A reservation holds the cost of its check. Units to charge or return.
        ttl_ms: Milliseconds until the hold ends; 1 for a charge or a refund.
        keep: Leases of the same holder that stay open.
    """

    kind: Literal[0, 1, 2, 3]
    id: HoldId
    number: _Natural
    want: _Units
    ttl_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_TTL_MS)]
    keep: Annotated[tuple[HoldId, ...], msgspec.Meta(max_length=MAX_LEASES)] = ()


class Settlement(msgspec.Struct, frozen=True, array_like=True):
    """The end of a hold, or of a part of it.

    Attributes:
        id: Id of the hold.
        used: Units to charge.
        partial: Whether the other units stay held.
    """

    id: HoldId
    used: _Units
    partial: bool = False


Settlements = Annotated[tuple[Settlement, ...], msgspec.Meta(max_length=MAX_RESERVATIONS + MAX_LEASES)]


class HoldRow(msgspec.Struct, frozen=True, array_like=True):
    """The holds that a check of a batch requests and settles.

    Attributes:
        index: Index of the check.
        ask: A request for a hold, granted with the check.
        settlements: Settlements of the check's client and resource, made before the check is judged.
    """

    index: _Natural
    ask: Ask | None = None
    settlements: Settlements = ()


class SettlementRow(msgspec.Struct, frozen=True, array_like=True):
    """Settlements of one client and resource."""

    client: str
    resource: str
    settlements: Settlements


class SettlementBatch(msgspec.Struct, frozen=True):
    """Settlements in one record. ``partition`` is the partition of ``replies`` for the reply; -1: none."""

    partition: int
    incarnation: int
    number: int
    rows: list[SettlementRow]


class Grant(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A granted hold: its units, and how many milliseconds it lasts from the record on.

    Of a refund: the units that were returned, and 0.
    """

    units: _Units
    ttl_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_TTL_MS)]
