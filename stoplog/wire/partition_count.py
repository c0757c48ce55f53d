"""``limit-updates``, partition 0: the number of partitions over which clients are hashed.

=====  ====================================================================================================
part   contents
=====  ====================================================================================================
key    JSON ``["partitions", "", ""]``
value  JSON ``{"version": 1, "partitions": 4}``; readers ignore unknown fields, and refuse a higher version
=====  ====================================================================================================

The topic is compacted, so the newest record stays. It is no limit update: workers do not relay it. Workers of
release 0.2.0 know no such kind of update and copy the record to the dead letters. Gateways of that release
skip it.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from stoplog.errors import UndecodableRecord
from stoplog.wire.format import to_json
from stoplog.wire.limit_updates import UpdateKey, encode_update_key

PARTITION: Final = 0
"""The partition of ``limit-updates`` that holds the record."""

KEY: Final = encode_update_key(UpdateKey("partitions"))

VERSION: Final = 1


class _Versioned(msgspec.Struct):
    version: int


class _PartitionCount(msgspec.Struct):
    version: int
    partitions: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


_version = msgspec.json.Decoder(_Versioned)
_count = msgspec.json.Decoder(_PartitionCount)


def encode_partition_count(partitions: int) -> bytes:
    """Return the value of the record."""
    return to_json(_PartitionCount(VERSION, partitions))


def decode_partition_count(value: bytes) -> int:
    """Return the number of partitions in the record.

    Raises:
        UndecodableRecord: The value is malformed, or a newer version of Stoplog wrote it.
    """
    try:
        version = _version.decode(value).version
        if version != VERSION:
            raise UndecodableRecord(f"format version {version} is not known here; upgrade this program")
        return _count.decode(value).partitions
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not a number of partitions: {exc}") from exc
