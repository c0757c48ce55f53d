"""Limits written and read: updates to the owners, and pages of the compacted topic."""

from __future__ import annotations

import msgspec

from streams.contract.policy import Policy
from streams.contract.records import UpdateKey


class Applied(msgspec.Struct, frozen=True):
    """Whether all owners confirmed a change, and its version (the offset in ``limit-updates``).

    The version of a plan or default, which is written to every partition, is the highest of them; -1 when
    ``applied`` is false.
    """

    applied: bool
    version: int


class StoredLimit(msgspec.Struct, frozen=True):
    """A policy as stored; ``policy`` is ``None`` for a deletion that is still in the log."""

    key: UpdateKey
    policy: Policy | None
    version: int


class LimitsPage(msgspec.Struct, frozen=True):
    """Some stored policies, and the cursor of the page after; ``None`` at the end."""

    items: list[StoredLimit]
    next: str | None
