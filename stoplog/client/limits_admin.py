"""Write and read limits, and their history.

*Writing.* An update of a client goes to the client's partition of ``limit-updates``. An update of a plan or
of the default goes to all partitions: first to its home partition, then to the others, with its offset at
home. By that offset all partitions agree which of two changes is later. A change is complete when every
worker concerned has confirmed it.

*Reading* scans the compacted topic, for no copy of all limits is kept here. ``get`` reads one partition from
its beginning, and the newest value wins. It takes milliseconds for hundreds of limits, and half a minute for
a million. Reads must not delay checks, so there is one scan at a time, with pauses.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Final, Protocol, TypeVar, TypeVarTuple

import msgspec

from stoplog.client.limits_history import HistoryPage, history_page, read_cursor
from stoplog.client.transport.audit_reader import RawAudit
from stoplog.errors import Busy, InvalidInput, Unavailable
from stoplog.partitioning import home_of, partition_of
from stoplog.policy import Policy, check_id
from stoplog.wire.audit import ChangeSource
from stoplog.wire.limit_updates import KINDS, Update, UpdateKey, encode_update_key, encode_update_value
from stoplog.wire.partition_count import PartitionCount
from stoplog.wire.replies import UpdateReply

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_PAGE: Final = 1_000
"""Entries of one page, at most."""

MAX_SCAN: Final = 50_000
"""Records read for one page, which takes about a second. Filters and old versions can leave it short."""

MAX_WAITING: Final = 16
"""Reads that may wait for the current one. The scan of a large partition takes seconds."""


class Applied(msgspec.Struct, frozen=True):
    """The result of a change.

    Attributes:
        applied: Whether all workers concerned confirmed it in time. If not, it is applied later.
        version: Its offset in ``limit-updates``, the highest one of a plan or the default; -1 if not applied.
        existed: Whether there was anything to replace, to delete or to reset; ``None`` if that is unknown.
    """

    applied: bool
    version: int
    existed: bool | None = None


NOT_CONFIRMED: Final = Applied(False, -1)


class StoredLimit(msgspec.Struct, frozen=True):
    """A stored policy and its version. ``policy`` is ``None`` for a deletion that is still in the log."""

    key: UpdateKey
    policy: Policy | None
    version: int


class LimitsPage(msgspec.Struct, frozen=True):
    """Some stored policies, and the cursor of the next page; ``None`` on the last page.

    A page with a next one may be short, even empty. Until the topic is compacted, a changed key can come
    again on a later page, with its newer policy or deleted. The last one is right.
    """

    items: list[StoredLimit]
    next: str | None


class Updates(Protocol):
    """The topic ``limit-updates``, as the transport provides it."""

    def send_update(
        self,
        partition: int,
        key: bytes,
        value: bytes | None,
        id_: str,
        done: Callable[[str | None, int], None],
        source: ChangeSource,
        order: int | None = None,
    ) -> None:
        """Publish an update whose confirmations carry *id_*; raise Unavailable if that is impossible now.

        *done* gets the reason of a later failure, or ``None`` and the update's offset.
        """

    def read_updates(self, partition: int, start: int | None) -> Generator[Update, None, None]:
        """Yield the updates of *partition* from offset *start* to its end. Blocks; raises Unavailable."""

    def read_audit(self, partition: int, before: int | None) -> Generator[RawAudit, None, None]:
        """Yield the audit of *partition* before an offset, the newest first. Blocks; raises Unavailable."""


class _Unconfirmed:
    """An update that not all workers concerned have confirmed."""

    def __init__(self, partitions: set[int], future: asyncio.Future[Applied]) -> None:
        self.partitions = partitions
        self.future = future
        self.version = -1
        self.existed: bool | None = None

    def confirm(self, reply: UpdateReply) -> None:
        self.partitions.discard(reply.partition)
        self.version = max(self.version, reply.version)
        if reply.existed is not None:
            self.existed = bool(self.existed) or reply.existed
        if self.future.done():
            return
        if not reply.applied:
            self.future.set_result(NOT_CONFIRMED)
        elif not self.partitions:
            self.future.set_result(Applied(True, self.version, self.existed))

    def published(self, failure: str | None, _: int) -> None:
        if failure is not None and not self.future.done():
            error = Unavailable(f"the change could not be published ({failure}): try again")
            self.future.set_exception(error)


class LimitsAdmin:
    """Writes and reads limits. Belongs to one event loop.

    Args:
        updates: The topic ``limit-updates``.
        count: Its number of partitions.
        prefix: Prefix of the ids of this process's updates.
        timeout_s: Seconds that a change waits for its confirmations.
    """

    def __init__(self, updates: Updates, *, count: PartitionCount, prefix: str, timeout_s: float) -> None:
        self._updates = updates
        self._count = count
        self._partitions = count.partitions
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._numbers = itertools.count(1)
        self._unconfirmed: dict[str, _Unconfirmed] = {}
        self._closed: str | None = None
        """Why no update is published any more; ``None`` if updates are."""
        self._at_home: set[str] = set()
        """The updates whose record at home is not confirmed, so no other partition has them."""
        self._sent = asyncio.Event()
        self._sent.set()
        # One thread: a scan continues if its caller is canceled, and the next scan waits for it.
        self._thread = ThreadPoolExecutor(1, "stoplog-limits")
        self._reading = 0

    async def write(self, key: UpdateKey, policy: Policy | None, source: ChangeSource) -> Applied:
        """Publish an update, and wait until all workers concerned confirm it or the timeout is over.

        Args:
            key: The key.
            policy: The new policy; ``None`` for a deletion or a reset.
            source: The source of the change, for the audit.

        Raises:
            InvalidInput: The key is invalid.
            Unavailable: The update could not be published, or not to all partitions; or updates are closed.
        """
        _check_key(key)
        if self._closed is not None:
            raise Unavailable(self._closed)
        home, *others = self._partitions_of(key)
        id_ = f"{self._prefix}{next(self._numbers)}"
        update = _Unconfirmed({home, *others}, asyncio.get_running_loop().create_future())
        self._unconfirmed[id_] = update
        raw_key, value = encode_update_key(key), encode_update_value(policy)

        def published(failure: str | None, order: int) -> None:
            """Send the update to the other partitions once its home has it, even if the caller has gone.

            If the process stops at this very moment, the change has to be made once more.
            """
            update.published(failure, order)
            for partition in others if failure is None else ():
                try:
                    self._updates.send_update(partition, raw_key, value, id_, update.published, source, order)
                except Unavailable as exc:
                    update.published(str(exc), order)
            self._note_sent(id_)

        self._at_home.add(id_)
        self._sent.clear()
        try:
            try:
                self._updates.send_update(home, raw_key, value, id_, published, source)
            except Unavailable:
                self._note_sent(id_)
                raise
            async with asyncio.timeout(self._timeout_s):
                return await update.future
        except TimeoutError:
            return NOT_CONFIRMED
        finally:
            del self._unconfirmed[id_]

    def _note_sent(self, id_: str) -> None:
        self._at_home.discard(id_)
        if not self._at_home:
            self._sent.set()

    def close(self, why: str) -> None:
        """Refuse all further updates, with the reason *why*."""
        self._closed = why

    async def wait_until_sent(self, timeout_s: float) -> None:
        """Wait at most *timeout_s* seconds until the updates that have begun are sent to all partitions."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._sent.wait()

    def on_replies(self, replies: list[UpdateReply]) -> None:
        """Take confirmations of workers. Late ones are dropped."""
        for reply in replies:
            if (update := self._unconfirmed.get(reply.id)) is not None:
                update.confirm(reply)

    async def get(self, key: UpdateKey) -> Policy | None:
        """Return the policy stored under *key*; ``None`` if there is none.

        Raises:
            Busy: Too many other reads wait.
            InvalidInput: The key is invalid.
            Unavailable: The broker did not answer.
        """
        _check_key(key)
        return await self._read(self._find, key, self._partitions_of(key)[0])

    async def page(self, after: str | None, limit: int, kind: str | None) -> LimitsPage:
        """Return up to *limit* stored policies after the cursor *after*, of one *kind* or of all.

        Raises:
            Busy: Too many other reads wait.
            InvalidInput: *after*, *limit* or *kind* is invalid.
            Unavailable: The broker did not answer.
        """
        check_page(limit, kind)
        partition, offset = read_page_cursor(after, self._partitions)
        return await self._read(self._scan, partition, offset, limit, kind)

    async def history(self, key: UpdateKey, before: str | None, limit: int) -> HistoryPage:
        """Return up to *limit* changes of *key* before the cursor *before*, the newest first.

        Raises:
            Busy: Too many other reads wait.
            InvalidInput: The key, *before* or *limit* is invalid.
            Unavailable: The broker did not answer, or there is no topic ``audit``.
        """
        _check_key(key)
        check_page(limit)
        offset = read_cursor(before)
        return await self._read(self._scan_history, key, self._partitions_of(key)[0], offset, limit)

    async def _read(self, scan: Callable[[*Ts], T], *args: *Ts) -> T:
        if self._reading == 1 + MAX_WAITING:
            raise Busy(f"{MAX_WAITING} reads of limits are waiting already: try again later")
        self._reading += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, scan, *args)
        finally:
            self._reading -= 1

    def _partitions_of(self, key: UpdateKey) -> list[int]:
        """Return the partitions of *key*: for a plan and the default all, the home partition first."""
        if key.kind in ("client", "reset"):
            return [partition_of(key.id, self._partitions)]
        home = home_of(key.kind, key.id, self._count.first)
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
                    if not _listed(update, partition, self._count, kind):
                        continue
                    items.pop(update.key, None)  # the newest value stands last
                    # A page that starts at the beginning of the partition has no earlier page with the key.
                    # Any other page has to report the deletion, for an earlier page may have listed the key.
                    if update.policy is not None or offset is not None:
                        items[update.key] = StoredLimit(update.key, update.policy, update.version)
            partition, offset = partition + 1, None
        return LimitsPage(list(items.values()), None)

    def _scan_history(self, key: UpdateKey, partition: int, before: int | None, limit: int) -> HistoryPage:
        with closing(self._updates.read_audit(partition, before)) as records:
            return history_page(records, key, limit)


def read_page_cursor(after: str | None, partitions: int) -> tuple[int, int | None]:
    """Return the partition and the offset in the cursor *after*.

    Raises:
        InvalidInput: It is no cursor of a topic with that many *partitions*.
    """
    if after is None:
        return 0, None
    match = re.fullmatch(r"(\d{1,6})\.(\d{1,18})", after, re.ASCII)
    if match is None or int(match[1]) >= partitions:
        raise InvalidInput("after", "not a cursor", "use `next` of the previous page, or leave it out")
    return int(match[1]), int(match[2])


def _listed(update: Update, partition: int, count: PartitionCount, kind: str | None) -> bool:
    """Return whether a page lists *update*; one of a plan or the default only in its home partition.

    A client that moved when the number of partitions grew may have an older update in another partition.
    """
    if update.kind == "reset" or kind not in (None, update.kind):
        return False
    if update.kind == "client":
        return partition == partition_of(update.id, count.partitions)
    return partition == home_of(update.kind, update.id, count.first)


def check_page(limit: int, kind: str | None = None) -> None:
    """Refuse a page of a size or a kind of limits that does not exist.

    Raises:
        InvalidInput: *limit* is not 1 to :data:`MAX_PAGE`, or *kind* is unknown.
    """
    if kind not in (None, "client", "plan", "default"):
        raise InvalidInput("kind", f"{kind!r} is not a kind of limits", "use client, plan or default")
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidInput("limit", "out of bounds", f"use 1 to {MAX_PAGE:,}")


def _check_key(key: UpdateKey) -> None:
    if key.kind not in KINDS:
        raise InvalidInput("kind", f"{key.kind!r} is not a kind of update", f"use one of {', '.join(KINDS)}")
    if key.kind != "default":
        check_id(key.id, "plan" if key.kind == "plan" else "client_id")
    elif key.id:
        raise InvalidInput("id", "the default has no id", "leave it out")
    if key.resource:
        check_id(key.resource, "resource")
