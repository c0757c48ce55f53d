"""The two tables, as Faust knows them.

Faust names them, assigns their partitions (standbys too, and stickily) and says where their RocksDB files
are. It does not open, restore or write them: its recovery reads 100 µs a record and
knows nothing of positions, and it closes files only by garbage collection. That is done by
:mod:`stoplog_worker.restore.restorer` and :mod:`stoplog_worker.consumer.consumer_thread`, for which :class:`Tables` is the way in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import faust
from faust.stores import rocksdb
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery

from stoplog_worker.state.rocksdb import Rocks
from stoplog_worker.state.store import TABLES, PartitionStore

Assigned = Callable[[int, set[int], set[int]], Awaitable[None]]
"""Called after each assignment with generation, active and standby partitions."""


class Store(rocksdb.Store):
    """A RocksDB store that Faust leaves alone."""

    def persisted_offset(self, tp: Any) -> int | None:
        """Not Faust's to know: see :attr:`stoplog_worker.state.store.PartitionStore.next`."""
        return None

    async def on_rebalance(self, *_args: Any, **_kwargs: Any) -> None:
        """Open and close nothing."""


class Table(faust.tables.Table):
    """A table over :class:`Store`."""

    def _new_store(self) -> Store:
        return Store("rocksdb://", self.app, self, table_name=self.name, loop=self.loop)


class HandOver(Recovery):
    """In place of Faust's recovery: tells who owns what, and is done."""

    assigned: Assigned

    async def on_rebalance(
        self, assigned: Any, revoked: Any, newly_assigned: Any, generation_id: int = 0
    ) -> None:
        """Pass the assignment of *generation_id* on, unless another has begun since."""
        app = self.app
        if generation_id != app.consumer_generation_id:
            return
        topics = self.tables.changelog_topics
        actives = {tp.partition for tp in app.assignor.assigned_actives() if tp.topic in topics}
        standbys = {tp.partition for tp in app.assignor.assigned_standbys() if tp.topic in topics}
        await self.assigned(generation_id, actives, standbys - actives)
        self.completed.set()
        self.tables.on_actives_ready()
        self.tables.on_standbys_ready()
        app.on_rebalance_end()


class Manager(TableManager):
    """Faust's table manager with :class:`HandOver` for its recovery."""

    assigned: Assigned
    _hand_over: HandOver | None = None

    @property
    def recovery(self) -> HandOver:
        """Made when first asked for, as Faust's is."""
        if self._hand_over is None:
            self._recovery = self._hand_over = HandOver(self.app, self, beacon=self.beacon, loop=self.loop)
            self._hand_over.assigned = self.assigned
        return self._hand_over

    async def on_start(self) -> None:
        """As Faust's, without its second of waiting: there are no agents that could still add tables."""
        await self._update_channels()
        await self.recovery.start()


class Tables:
    """Both tables of an app.

    Args:
        app: Whose id names the changelogs.
        partitions: Of each.
        rocks: Opens their files.
    """

    def __init__(self, app: Any, partitions: int, rocks: Rocks) -> None:
        self._rocks = rocks
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
        return PartitionStore(partition, self._rocks.open, paths)
