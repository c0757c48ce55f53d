"""Faust passes an assignment on to the coordinator, which opens and closes the tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from faust.assignor.client_assignment import ClientAssignment
from stoplog_worker.assignment.faust_app import FaustApp
from stoplog_worker.assignment.faust_tables import FaustTables
from stoplog_worker.lease import Lease
from stoplog_worker.settings import Settings
from stoplog_worker.state.rocksdb import RocksDbFactory

from stoplog.topics import COUNTERS_CHANGELOG, POLICIES_CHANGELOG, UPDATES

GENERATION = 7
TOPICS = (UPDATES, COUNTERS_CHANGELOG, POLICIES_CHANGELOG)


class AssignedApp(FaustApp):
    """An app to which its group has assigned partitions 0 and 2 as active, and 1 as standby."""

    def __init__(self, home: Path) -> None:
        async def nothing() -> None: ...

        super().__init__(
            Settings(home=home),
            3,
            Lease(6_000, 2_000),
            nothing,
            self.record,
            nothing,
            lambda: None,
            lambda _: None,
        )
        FaustTables(self, 3, RocksDbFactory(1 << 20, 6))
        self.assignments: list[tuple[int, set[int], set[int]]] = []
        self.assignor._assignment = ClientAssignment(
            actives={topic: [0, 2] for topic in TOPICS}, standbys={topic: [1] for topic in TOPICS}
        )

    async def record(self, generation: int, actives: set[int], standbys: set[int]) -> None:
        """Record the assignment, in place of the coordinator."""
        self.assignments.append((generation, actives, standbys))

    async def rebalanced(self) -> None:
        """End a rebalance as Faust does, with the generation in which it began."""
        self.on_rebalance_start()
        await self.tables.recovery.on_rebalance(set(), set(), set(), GENERATION)


@pytest.fixture
async def app(tmp_path: Path) -> AssignedApp:
    return AssignedApp(tmp_path)


async def test_on_rebalance_passes_assignment_on(app: AssignedApp) -> None:
    app.consumer_generation_id = GENERATION
    await app.rebalanced()
    assert app.assignments == [(GENERATION, {0, 2}, {1})]
    assert app.tables.recovery.completed.is_set()
    assert not app.rebalancing


async def test_on_rebalance_of_older_generation_passes_nothing_on(app: AssignedApp) -> None:
    """The newer assignment is already in place. It would be passed on as that of the older generation."""
    app.consumer_generation_id = GENERATION + 1
    await app.rebalanced()
    assert not app.assignments
    assert app.rebalancing
