"""What a partition that is split off begins with. Pure: no Kafka, no clock, no I/O.

Offsets of a new partition begin at 0, and positions are made of offsets. So everything that moves gets
position 0, the record at offset 0 is one that decides nothing (:data:`FILLER`), and the first record to be
decided has offset :data:`FIRST_OFFSET`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from stoplog.partitioning import partition_of
from stoplog.wire.checks import Denials, encode_denials
from stoplog.wire.limit_updates import ENABLE_HOLDS, KINDS, UpdateKey
from stoplog_worker.algorithm.state_codec import (
    Marker,
    PolicyChange,
    decode_key,
    encode_history,
    expires_at_ms,
)

FIRST_OFFSET: Final = 1
"""Offset in ``checks`` of the first record that a new partition decides."""

FILLER: Final = encode_denials(Denials(0, []))
"""The record at offset 0 of ``checks`` in a new partition: a gateway reports that it has denied nothing."""

_POSITION: Final = bytes(8)


def new_partitions(partition: int, before: int, after: int) -> range:
    """Return the partitions that are split off from *partition* when *before* partitions become *after*.

    >>> list(new_partitions(1, 4, 16))
    [5, 9, 13]
    """
    return range(partition + before, after, before)


def owner_of_state(key: bytes, partitions: int) -> int:
    """Return the partition of the client in the stored *key* of a state."""
    decoded = decode_key(key)
    return partition_of(decoded if isinstance(decoded, str) else decoded[0], partitions)


def split_state(value: bytes, clock_ms: int) -> bytes | None:
    """Return a state as the new partition stores it; ``None`` if it has expired at *clock_ms*."""
    if expires_at_ms(value) <= clock_ms:
        return None
    return value[:1] + _POSITION + value[9:]


def policy_key(stored: bytes) -> UpdateKey | None:
    r"""Return the key of a policy, from its stored form; ``None`` if no worker stores policies under it.

    A foreign record in the changelog may have any key. The owner keeps it, as the key of a deleted policy.

    >>> policy_key(b"plan\0gold\0login")
    UpdateKey(kind='plan', id='gold', resource='login')
    """
    try:
        kind, id_, resource = (part.decode() for part in stored.split(b"\0"))
    except ValueError:  # not three parts, or no UTF-8
        return None
    key = UpdateKey(kind, id_, resource)
    return key if kind in KINDS or key == ENABLE_HOLDS else None


def goes_to(key: UpdateKey, partition: int, partitions: int) -> bool:
    """Return whether *partition* needs the policy *key*. Plans and the default are in every partition."""
    return key.kind != "client" or partition_of(key.id, partitions) == partition


def split_history(change: PolicyChange, version: int) -> bytes:
    """Return the history of a policy as the new partition stores it: *change* is in force from the beginning.

    Args:
        change: The last change of the policy.
        version: Its offset in ``limit-updates`` of the new partition.
    """
    return encode_history([msgspec.structs.replace(change, position=0, version=version)], 0)


def split_marker(marker: Marker, first_offset: int, applied: int) -> Marker:
    """Return the marker with which the new partition begins.

    Args:
        marker: The marker of the old partition, at the end of its log. The new partition's time continues
            from its clock, by the difference from its last timestamp.
        first_offset: The first offset in ``checks`` to be decided, at least :data:`FIRST_OFFSET`.
        applied: The last offset in ``limit-updates`` of the new partition that need not be applied.
    """
    return msgspec.structs.replace(
        marker,
        next_offset=first_offset,
        applied=applied,
        signed_from=0 if marker.signed_from >= 0 else -1,
    )
