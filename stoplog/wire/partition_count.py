"""``limit-updates``, partition 0: the number of partitions over which clients are hashed.

=====  ====================================================================================================
part   contents
=====  ====================================================================================================
key    JSON ``["partitions", "", ""]``
value  JSON, the fields of :class:`PartitionCount` and of :class:`GrowthStep`; readers ignore unknown fields,
       and refuse a higher version
=====  ====================================================================================================

::

    {"version": 1, "partitions": 4}
    {"version": 2, "partitions": 4, "epoch": 1, "to": 16, "draining": true, "token": "5d0c61c5"}
    {"version": 2, "partitions": 16, "first": 4, "copied": [0, 7, 0, 12], "epoch": 1, "token": "5d0c61c5"}

The version is 1 until the number grows for the first time (:mod:`stoplog_worker.growth`), and 2 from then on:
a program that does not know the steps must not work while one is under way. The other fields are absent
before.

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
"""Version of a record without a step of growing."""

STEPS_VERSION: Final = 2
"""Version of a record that has the fields of a step. The highest that is known here."""


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


class GrowthStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last step in which the number of partitions grew, or the one that is under way.

    ==============================  ===================================  ==========================
    state                           gateways                             workers
    ==============================  ===================================  ==========================
    done: ``to`` is ``None``        publish checks                       decide checks
    growing: ``to`` is a number     answer all checks without the store  decide what is in the log
    draining: ``draining`` as well  answer all checks without the store  stop at the end of the log
    ==============================  ===================================  ==========================

    Attributes:
        epoch: Number of the step; 0 before the first one. Each attempt has a higher one.
        to: The number of partitions afterwards, while the step is under way; ``None`` when it is done. Until
            then the number in force is the old one.
        draining: Whether all gateways have stopped to publish, so that workers stop at the end of the log.
        token: Random text that names the command that wrote the record, so that two commands tell their
            records apart.
    """

    epoch: Annotated[int, msgspec.Meta(ge=0)] = 0
    to: Number | None = None
    draining: bool = False
    token: str = ""

    @property
    def under_way(self) -> bool:
        """Whether the number is growing now."""
        return self.to is not None


NO_STEP: Final = GrowthStep()
"""The number has never grown."""


class CountRecord(msgspec.Struct, frozen=True):
    """The content of the record: the number in force, and the last step of growing."""

    count: PartitionCount
    step: GrowthStep = NO_STEP


_version = msgspec.json.Decoder(_Versioned)
_count = msgspec.json.Decoder(PartitionCount)
_step = msgspec.json.Decoder(GrowthStep)


def encode_partition_count(count: PartitionCount, step: GrowthStep = NO_STEP) -> bytes:
    """Return the value of the record."""
    version = STEPS_VERSION if step.epoch else VERSION
    return to_json({"version": version} | msgspec.to_builtins(count) | msgspec.to_builtins(step))


def decode_partition_count(value: bytes) -> CountRecord:
    """Return the number of partitions in the record, and the step.

    Raises:
        UndecodableRecord: The value is malformed, or a newer version of Stoplog wrote it.
    """
    try:
        version = _version.decode(value).version
        if version not in (VERSION, STEPS_VERSION):
            raise UndecodableRecord(f"format version {version} is not known here; upgrade this program")
        count = _count.decode(value)
        step = _step.decode(value) if version == STEPS_VERSION else NO_STEP
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise UndecodableRecord(f"not a number of partitions: {exc}") from exc
    if count.partitions % count.first:
        raise UndecodableRecord(
            f"not a number of partitions: {count.partitions} is no multiple of the first, {count.first}"
        )
    if version == STEPS_VERSION and not step.epoch:
        raise UndecodableRecord("not a step of growing: its epoch is missing or 0")
    if step.to is not None and step.to % count.partitions:
        raise UndecodableRecord(
            f"not a step of growing: {step.to} is no multiple of {count.partitions} partitions"
        )
    return CountRecord(count, step)
