"""A request to Envoy's rate limit service, independent of its encoding.

``/json`` takes proto3 JSON, which protobuf parses in Python and takes several times as long for as for a
check. :func:`parse_plain` reads the plain form of it, as clients write it, without protobuf. It leaves every
other form to protobuf.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from stoplog.errors import InvalidInput
from stoplog.policy import MAX_COST
from stoplog_gateway.envoy.mapping import Entries

MAX_DESCRIPTORS: Final = 100
MAX_ENTRIES: Final = 100
"""Entries per descriptor. Envoy's configuration lists each one, so real requests have a handful. A request
with 100 x 100 entries blocks the event loop for about 10 ms."""


class AskedDescriptor(NamedTuple):
    """A descriptor: its entries, the cost of its check, and whether that cost is returned."""

    entries: Entries
    cost: int
    is_refund: bool = False


class RateLimitCall(NamedTuple):
    """A valid ``RateLimitRequest``."""

    domain: str | bytes
    descriptors: list[AskedDescriptor]


def call_of(message: Any) -> RateLimitCall:
    """Return the call in *message*, a ``RateLimitRequest``.

    Raises:
        InvalidInput: It has no domain, or too few or too many descriptors or entries.
    """
    require_count(message.domain, len(message.descriptors))
    descriptors = []
    for index, descriptor in enumerate(message.descriptors):
        require_entries(index, len(descriptor.entries))
        entries = [(entry.key, entry.value) for entry in descriptor.entries]
        own = descriptor.hits_addend.value if descriptor.HasField("hits_addend") else None
        descriptors.append(
            AskedDescriptor(entries, _cost(message.hits_addend, own), descriptor.is_negative_hits)
        )
    return RateLimitCall(message.domain, descriptors)


def require_count(domain: str | bytes, descriptors: int) -> None:
    """Refuse a request without a domain, or with a number of *descriptors* that is out of bounds.

    Raises:
        InvalidInput: Names the fault.
    """
    if not domain:
        raise InvalidInput("domain", "empty", "set it in Envoy's rate limit filter")
    if not 1 <= descriptors <= MAX_DESCRIPTORS:
        raise InvalidInput("descriptors", f"{descriptors} of them", f"send 1 to {MAX_DESCRIPTORS}")


def require_entries(index: int, entries: int) -> None:
    """Refuse the descriptor at *index* if its number of *entries* is out of bounds.

    Raises:
        InvalidInput: Names the fault.
    """
    if not 1 <= entries <= MAX_ENTRIES:
        raise InvalidInput(f"descriptors[{index}].entries", f"{entries} of them", f"send 1 to {MAX_ENTRIES}")


def _cost(hits: int, own_hits: int | None) -> int:
    """Return the cost of a descriptor with *own_hits* in a request with *hits*, capped at the maximum.

    Envoy allows traffic whose rate limit request fails, so a cost above the maximum must not be an error.
    """
    return min((hits or 1) if own_hits is None else own_hits, MAX_COST)


# --- JSON ---

_Hits32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_Hits64 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # the largest bound that msgspec has


class _Entry(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    key: str
    value: str


class _Descriptor(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    entries: list[_Entry]
    hits_addend: _Hits64 | UnsetType = UNSET
    is_negative_hits: bool | UnsetType = UNSET


class _Request(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    domain: str
    descriptors: list[_Descriptor]
    hits_addend: _Hits32 | UnsetType = UNSET


_decode: Final = msgspec.json.Decoder(_Request).decode


def parse_plain(body: bytes) -> RateLimitCall | None:
    """Return the call in *body*, a ``RateLimitRequest`` in proto3 JSON; ``None`` if its form is not plain.

    The plain form has no field but ``domain``, ``descriptors``, ``entries``, ``key``, ``value``,
    ``hitsAddend`` and ``isNegativeHits``, no field twice, numbers as numbers, and no escaped quote.

    Raises:
        InvalidInput: As :func:`call_of`.
    """
    try:
        request = _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    hits = request.hits_addend
    strings = 3 if hits is UNSET else 4
    for descriptor in request.descriptors:
        strings += 1 + 4 * len(descriptor.entries)
        strings += (descriptor.hits_addend is not UNSET) + (descriptor.is_negative_hits is not UNSET)
    if body.count(b'"') != 2 * strings:  # a field occurs twice, which msgspec accepts, or a quote is escaped
        return None
    require_count(request.domain, len(request.descriptors))
    descriptors = []
    for index, descriptor in enumerate(request.descriptors):
        require_entries(index, len(descriptor.entries))
        own = descriptor.hits_addend
        cost = _cost(0 if hits is UNSET else hits, None if own is UNSET else own)
        entries = [(entry.key, entry.value) for entry in descriptor.entries]
        descriptors.append(AskedDescriptor(entries, cost, descriptor.is_negative_hits is True))
    return RateLimitCall(request.domain, descriptors)
