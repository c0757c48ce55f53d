"""One reading of header fields that name clients: UTF-8, one value, and no address.

HTTP lets every proxy join fields of the same name by commas, or keep them apart. Therefore a comma separates
values here, however they arrive. With several different values, Stoplog and an application could take
different ones for the client, so such a request has no client.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stoplog.errors import InvalidInput
from stoplog.identity.addresses import UNKNOWN_ADDRESS, network_id
from stoplog.policy import digest_id, usable_id


class SeveralValues(InvalidInput):
    """A header field that names the client has several different values, so the request has no client."""


def header_id(value: bytes) -> str:
    """Return the id in the value of a header field.

    An invalid one (not UTF-8, too long, or with control characters) is replaced by its digest. White space
    around it is no part of it.

    >>> header_id("élise".encode()), header_id(b" alice ")
    ('élise', 'alice')
    >>> header_id("élise".encode("latin-1"))[:15]
    'sha256:4dfbf037'
    """
    stripped = value.strip(b" \t")
    try:
        return usable_id(stripped.decode())
    except UnicodeDecodeError:
        return digest_id(stripped)


def parts_of(values: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the parts of *values* between commas, without white space around them."""
    for value in values:
        for part in value.split(b","):
            yield part.strip(b" \t")


def sole_value(values: Iterable[bytes], name: str) -> bytes:
    """Return the only one of *values*, which may occur several times; empty if all are empty.

    Args:
        values: Values of a field.
        name: Its name, for the error.

    Raises:
        SeveralValues: They differ. Empty ones do not count.

    >>> sole_value(parts_of([b"", b"alice, ", b"alice"]), "X-Api-Key")
    b'alice'
    """
    found = {value for value in values if value}
    if len(found) > 1:
        raise SeveralValues(name, "has several values", "send one value, without a comma")
    return found.pop() if found else b""


def values_id(values: Iterable[bytes], name: str) -> str | None:
    """Return the id in the *values* of a header field; ``None`` if all are empty.

    The client of an address is named by the address alone (:mod:`stoplog.identity.forwarding`). A value that
    spells its id is replaced by a digest.

    Args:
        values: The value of each field with that name.
        name: The name, for the error.

    Raises:
        SeveralValues: There are different values.

    >>> values_id([b"alice"], "X-Api-Key"), values_id([b"192.0.2.1"], "X-Api-Key")[:15]
    ('alice', 'sha256:37fcff24')
    """
    value = sole_value(parts_of(values), name)
    if not value:
        return None
    id_ = header_id(value)
    return digest_id(value) if _is_of_an_address(id_) else id_


def field_id(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str | None:
    """Return the id in the header field *name*; ``None`` if the field is missing or empty.

    Args:
        headers: Header fields, with names in lower case.
        name: Name of the field, in lower case.

    Raises:
        SeveralValues: The field has different values.
    """
    return values_id((value for key, value in headers if key == name), name.decode().title())


def _is_of_an_address(id_: str) -> bool:
    if id_ == UNKNOWN_ADDRESS:
        return True
    return ("." in id_ or ":" in id_) and network_id(id_) is not None
