"""Limits written and read.

*Writing*: an update goes to the partition of ``limit-updates`` whose owner must apply it, with a reply
address, and is done when the owner has said so. That of a plan or the default goes to all of them: to its
home first, and to the others with its offset there, so that all agree which of two changes is the later.

*Reading* scans the compacted topic, because no copy of all limits is kept here. ``get`` reads one
partition from its beginning, and the newest value wins: 40,000 records a second on two busy cores, 8 µs of
CPU each, so milliseconds for hundreds of limits and half a minute for a million. It is an admin's call, not
a check's, and must not hold checks up: one scan at a time, which rests between a few records and the next.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from typing import Final, Protocol, TypeVar, TypeVarTuple

import msgspec

from stoplog.errors import Busy, InvalidInput, Unavailable
from stoplog.partitioning import home_of, partition_of
from stoplog.policy import Policy, check_id
from stoplog.wire.limit_updates import KINDS, Update, UpdateKey, encode_update_key, encode_update_value
from stoplog.wire.replies import UpdateReply

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_PAGE: Final = 1_000
"""Entries of one page."""

MAX_SCAN: Final = 50_000
"""Records read for one page, in about a second: with a filter, or many old versions, it may stay short."""

MAX_WAITING: Final = 16
"""Reads that wait for the one under way to end; a scan of a large partition takes seconds."""


class Applied(msgspec.Struct, frozen=True):
    """Whether all owners confirmed a change, and its version (the offset in ``limit-updates``).

    The version of a plan or default, which is written to every partition, is the highest of them; -1 when
    ``applied`` is false.
    """

    applied: bool
    version: int


NOT_CONFIRMED: Final = Applied(False, -1)


class StoredLimit(msgspec.Struct, frozen=True):
    """A policy as stored; ``policy`` is ``None`` for a deletion that is still in the log."""

    key: UpdateKey
    policy: Policy | None
    version: int


class LimitsPage(msgspec.Struct, frozen=True):
    """Some stored policies, and the cursor of the page after; ``None`` at the end.

    A page may be short, even empty, and yet have a next. Until the topic is compacted, a key that was
    changed can come again on a later page, with its newer value, or deleted: the last one seen is right.
    """

    items: list[StoredLimit]
    next: str | None


class Updates(Protocol):
    """The topic ``limit-updates``: the transport."""

    def send_update(
        self,
        partition: int,
        key: bytes,
        value: bytes | None,
        id_: str,
        done: Callable[[str | None, int], None],
        order: int | None = None,
    ) -> None:
        """Publish an update whose word comes under *id_*; raises Unavailable, or says why, or where."""

    def read_updates(self, partition: int, start: int | None) -> Generator[Update, None, None]:
        """The partition from *start* to its present end; blocks; raises Unavailable."""


class _Unconfirmed:
    """An update that not all owners have confirmed."""

    def __init__(self, partitions: set[int], future: asyncio.Future[Applied]) -> None:
        self.partitions = partitions
        self.future = future
        self.version = -1

    def confirm(self, word: UpdateReply) -> None:
        self.partitions.discard(word.partition)
        self.version = max(self.version, word.version)
        if self.future.done():
            return
        if not word.applied:
            self.future.set_result(NOT_CONFIRMED)
        elif not self.partitions:
            self.future.set_result(Applied(True, self.version))

    def published(self, why_not: str | None, _: int) -> None:
        if why_not is not None and not self.future.done():
            failure = Unavailable(f"the change could not be published ({why_not}): try again")
            self.future.set_exception(failure)


class Admin:
    """Changes and lists of limits, for one gateway.

    Args:
        updates: The topic.
        partitions: Its partitions.
        prefix: What the ids of this gateway's updates begin with.
        timeout_s: Seconds that a change waits to be confirmed.
    """

    def __init__(self, updates: Updates, *, partitions: int, prefix: str, timeout_s: float) -> None:
        self._updates = updates
        self._partitions = partitions
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._numbers = count(1)
        self._unconfirmed: dict[str, _Unconfirmed] = {}
        # One thread of its own: a scan goes on though whoever asked has gone, and the next waits for it.
        self._thread = ThreadPoolExecutor(1, "stoplog-limits")
        self._reading = 0

    async def write(self, key: UpdateKey, policy: Policy | None) -> Applied:
        """Publish an update; returns when all owners have confirmed it, or not confirmed after the timeout.

        Raises:
            InvalidInput: a key that cannot be used.
            Unavailable: it could not be published; of a plan or default, not to all partitions.
        """
        _check_key(key)
        home, *others = self._owners(key)
        id_ = f"{self._prefix}{next(self._numbers)}"
        update = _Unconfirmed({home, *others}, asyncio.get_running_loop().create_future())
        self._unconfirmed[id_] = update
        raw_key, value = encode_update_key(key), encode_update_value(policy)

        def published(why_not: str | None, order: int) -> None:
            """What its home has, the others must get, though nobody waits any more.

            Unless the gateway stops in just this moment: then the change is to be made once more.
            """
            update.published(why_not, order)
            for partition in others if why_not is None else ():
                try:
                    self._updates.send_update(partition, raw_key, value, id_, update.published, order)
                except Unavailable as exc:
                    update.published(str(exc), order)

        try:
            self._updates.send_update(home, raw_key, value, id_, published)
            async with asyncio.timeout(self._timeout_s):
                return await update.future
        except TimeoutError:
            return NOT_CONFIRMED
        finally:
            del self._unconfirmed[id_]

    def told(self, words: list[UpdateReply]) -> None:
        """Owners' words; those that came too late are dropped."""
        for word in words:
            if (update := self._unconfirmed.get(word.id)) is not None:
                update.confirm(word)

    async def get(self, key: UpdateKey) -> Policy | None:
        """The policy stored under *key*; ``None`` if there is none.

        Raises:
            Busy: too many other reads are waiting.
            InvalidInput: a key that cannot be used.
            Unavailable: the broker did not answer.
        """
        _check_key(key)
        return await self._read(self._find, key, self._owners(key)[0])

    async def page(self, after: str | None, limit: int, kind: str | None) -> LimitsPage:
        """Up to *limit* stored policies from the cursor *after* on, of one *kind* or all.

        Raises:
            Busy: too many other reads are waiting.
            InvalidInput: *after*, *limit* or *kind* cannot be used.
            Unavailable: the broker did not answer.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidInput("limit", "out of bounds", f"use 1 to {MAX_PAGE:,}")
        if kind not in (None, "client", "plan", "default"):
            raise InvalidInput("kind", f"{kind!r} is not one", "use client, plan or default")
        partition, offset = self._read_cursor(after)
        return await self._read(self._scan, partition, offset, limit, kind)

    async def _read(self, scan: Callable[[*Ts], T], *args: *Ts) -> T:
        if self._reading == 1 + MAX_WAITING:
            raise Busy(f"a read of limits is under way and {MAX_WAITING} wait: try again later")
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, scan, *args)
        finally:
            self._reading -= 1

    def _owners(self, key: UpdateKey) -> list[int]:
        """The partitions of *key*; of a plan and the default all, their home first: it orders changes."""
        if key.kind in ("client", "reset"):
            return [partition_of(key.id, self._partitions)]
        home = home_of(key.kind, key.id, self._partitions)
        return [home, *(other for other in range(self._partitions) if other != home)]

    def _find(self, key: UpdateKey, partition: int) -> Policy | None:
        found = None
        for update in self._updates.read_updates(partition, None):
            if update.key == key:
                found = update.policy
        return found

    def _scan(self, partition: int, offset: int | None, limit: int, kind: str | None) -> LimitsPage:
        items: dict[UpdateKey, StoredLimit] = {}
        budget = MAX_SCAN
        while partition < self._partitions:
            with closing(self._updates.read_updates(partition, offset)) as updates:
                for update in updates:
                    if len(items) == limit or budget == 0:
                        return LimitsPage(list(items.values()), f"{partition}.{update.version}")
                    budget -= 1
                    if not _listed(update, partition, self._partitions, kind):
                        continue
                    items.pop(update.key, None)  # the newest comes last
                    # A page that began where the partition does has seen all there was to delete; a later
                    # one must tell, for the key may have been on the page before.
                    if update.policy is not None or offset is not None:
                        items[update.key] = StoredLimit(update.key, update.policy, update.version)
            partition, offset = partition + 1, None
        return LimitsPage(list(items.values()), None)

    def _read_cursor(self, after: str | None) -> tuple[int, int | None]:
        if after is None:
            return 0, None
        match = re.fullmatch(r"(\d{1,6})\.(\d{1,18})", after, re.ASCII)
        if match is None or int(match[1]) >= self._partitions:
            raise InvalidInput("after", "not a cursor", "give `next` of the page before, or leave it out")
        return int(match[1]), int(match[2])


def _listed(update: Update, partition: int, partitions: int, kind: str | None) -> bool:
    """Whether a page shows *update*: a plan or the default, which every partition holds, only its home's."""
    if update.kind == "reset" or kind not in (None, update.kind):
        return False
    return update.kind == "client" or partition == home_of(update.kind, update.id, partitions)


def _check_key(key: UpdateKey) -> None:
    if key.kind not in KINDS:
        raise InvalidInput("kind", f"{key.kind!r} is not one", f"use one of {', '.join(KINDS)}")
    if key.kind != "default":
        check_id(key.id, "plan" if key.kind == "plan" else "client_id")
    elif key.id:
        raise InvalidInput("id", "the default has none", "leave it out")
    if key.resource:
        check_id(key.resource, "resource")
