"""``limit-updates``, partition 0: the number of partitions over which clients are hashed.

=====  ====================================================================================================
part   contents
=====  ====================================================================================================
key    JSON ``["partitions", "", ""]``
value  JSON, the fields of :class:`PartitionCount`, as ``{"version": 1, "partitions": 16, "first": 4}``;
       readers ignore unknown fields, and refuse a higher version
=====  ====================================================================================================

``first`` and ``copied`` are absent until the number grows (:mod:`stoplog_worker.growth`).

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


MAX_PARTITIONS: Final = 1_000_000

Number = Annotated[int, msgspec.Meta(ge=1, le=MAX_PARTITIONS)]


class PartitionCount(msgspec.Struct, frozen=True, omit_defaults=True):
    """The number of partitions.

    Attributes:
        partitions: The number over which clients are hashed.
        grown_from: The number with which the log began, if it was another one. Plans and the default keep the
            home partitions that they had then (:func:`stoplog.partitioning.home_of`).
        copied: For each partition before the number grew last, the end of its ``limit-updates``. Growing has
            copied what was before, if it concerned a client that moved.
    """

    partitions: Number
    grown_from: Number | None = msgspec.field(default=None, name="first")
    copied: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()

    @property
    def first(self) -> int:
        """The number with which the log began."""
        return self.partitions if self.grown_from is None else self.grown_from

    def has_copied(self, partition: int, offset: int, right: int) -> bool:
        """Return whether growing has copied an update to the partition to which its client has moved.

        Args:
            partition: The partition of ``limit-updates`` that has the update.
            offset: Its offset there.
            right: The partition of its client.
        """
        before = len(self.copied)
        return partition < before and offset < self.copied[partition] and right % before == partition


_version = msgspec.json.Decoder(_Versioned)
_count = msgspec.json.Decoder(PartitionCount)


def encode_partition_count(count: PartitionCount) -> bytes:
    """Return the value of the record."""
    return to_json({"version": VERSION} | msgspec.to_builtins(count))


def decode_partition_count(value: bytes) -> PartitionCount:
    """Return the number of partitions in the record.

    Raises:
        UndecodableRecord: The value is malformed, or a newer version of Stoplog wrote it.
    """
    try:
        version = _version.decode(value).version
        if version != VERSION:
            raise UndecodableRecord(f"format version {version} is not known here; upgrade this program")
        count = _count.decode(value)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not a number of partitions: {exc}") from exc
    if count.partitions % count.first:
        raise UndecodableRecord(
            f"not a number of partitions: {count.partitions} is no multiple of the first, {count.first}"
        )
    return count
