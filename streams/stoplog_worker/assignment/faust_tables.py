"""The two tables, as Faust knows them.

Faust names the tables, assigns their partitions (standbys too, and sticky) and decides where their RocksDB
files are. It does not open, restore or write them. Its recovery is slow and ignores positions, and it closes
files only by garbage collection. Instead :mod:`stoplog_worker.restore.restorer` and
:mod:`stoplog_worker.consumer.consumer_thread` do that, through :class:`FaustTables`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import faust
from faust.stores import rocksdb
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery

from stoplog_worker.state.rocksdb import RocksDbFactory
from stoplog_worker.state.store import TABLES, PartitionStore

OnAssigned = Callable[[int, set[int], set[int]], Awaitable[None]]
"""Awaited after each assignment, with generation, active and standby partitions."""


class UnmanagedStore(rocksdb.Store):
    """A RocksDB store that Faust does not open or close."""

    def persisted_offset(self, tp: Any) -> int | None:
        """Return ``None``: the offset is in :attr:`stoplog_worker.state.store.PartitionStore.next_offset`."""
        return None

    async def on_rebalance(self, *_args: Any, **_kwargs: Any) -> None:
        """Do nothing."""


class UnmanagedTable(faust.tables.Table):
    """A table over :class:`UnmanagedStore`."""

    def _new_store(self) -> UnmanagedStore:
        return UnmanagedStore("rocksdb://", self.app, self, table_name=self.name, loop=self.loop)


class AssignmentRecovery(Recovery):
    """Replaces Faust's recovery: passes the assignment on and completes at once."""

    on_assigned: OnAssigned

    async def on_rebalance(
        self, assigned: Any, revoked: Any, newly_assigned: Any, generation_id: int = 0
    ) -> None:
        """Pass the assignment of *generation_id* on, unless a newer generation has begun."""
        app = self.app
        if generation_id != app.consumer_generation_id:
            return
        topics = self.tables.changelog_topics
        actives = {tp.partition for tp in app.assignor.assigned_actives() if tp.topic in topics}
        standbys = {tp.partition for tp in app.assignor.assigned_standbys() if tp.topic in topics}
        await self.on_assigned(generation_id, actives, standbys - actives)
        self.completed.set()
        self.tables.on_actives_ready()
        self.tables.on_standbys_ready()
        app.on_rebalance_end()


class UnmanagedTableManager(TableManager):
    """Faust's table manager with :class:`AssignmentRecovery` as its recovery."""

    on_assigned: OnAssigned
    _assignment_recovery: AssignmentRecovery | None = None

    @property
    def recovery(self) -> AssignmentRecovery:
        """The recovery, created at its first use, like Faust's."""
        if self._assignment_recovery is None:
            recovery = AssignmentRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
            recovery.on_assigned = self.on_assigned
            self._recovery = self._assignment_recovery = recovery
        return self._assignment_recovery

    async def on_start(self) -> None:
        """Start like Faust's manager, without its second of waiting for agents, which might add tables."""
        await self._update_channels()
        await self.recovery.start()


class FaustTables:
    """Both tables of a Faust app.

    Args:
        app: The app. Its id is part of the changelogs' names.
        partitions: Partitions of each table.
        databases: Opens their files.
    """

    def __init__(self, app: Any, partitions: int, databases: RocksDbFactory) -> None:
        self._databases = databases
        self._tables = {
            table: app.Table(table, partitions=partitions, key_type=bytes, value_type=bytes)
            for table in TABLES
        }

    @property
    def changelogs(self) -> dict[str, str]:
        """The changelog topic of each table."""
        return {name: table.changelog_topic.get_topic_name() for name, table in self._tables.items()}

    def open(self, partition: int) -> PartitionStore:
        """Open both tables of *partition*."""
        paths = {name: table.data.partition_path(partition) for name, table in self._tables.items()}
        return PartitionStore(partition, self._databases.open, paths)
