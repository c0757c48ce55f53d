"""An assignment on its way from Faust to whoever opens and closes the tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from faust.assignor.client_assignment import ClientAssignment
from stoplog_worker.assignment.faust_app import App
from stoplog_worker.assignment.faust_tables import Tables
from stoplog_worker.lease import Lease
from stoplog_worker.settings import Settings
from stoplog_worker.state.rocksdb import Rocks

from stoplog.topics import COUNTERS_CHANGELOG, POLICIES_CHANGELOG, UPDATES

GENERATION = 7
TOPICS = (UPDATES, COUNTERS_CHANGELOG, POLICIES_CHANGELOG)


class Assigned(App):
    """An app whose group has given it partitions 0 and 2 to judge, and 1 to stand by for."""

    def __init__(self, home: Path) -> None:
        async def nothing() -> None: ...

        super().__init__(Settings(home=home), Lease(6_000, 2_000), nothing, self.tell, nothing, lambda: None)
        Tables(self, 3, Rocks(1 << 20))
        self.told: list[tuple[int, set[int], set[int]]] = []
        self.assignor._assignment = ClientAssignment(
            actives={topic: [0, 2] for topic in TOPICS}, standbys={topic: [1] for topic in TOPICS}
        )

    async def tell(self, generation: int, actives: set[int], standbys: set[int]) -> None:
        """In place of the ownership."""
        self.told.append((generation, actives, standbys))

    async def rebalanced(self) -> None:
        """As Faust does at the end of a rebalance, with the generation that it began by."""
        self.on_rebalance_start()
        await self.tables.recovery.on_rebalance(set(), set(), set(), GENERATION)


@pytest.fixture
async def app(tmp_path: Path) -> Assigned:
    return Assigned(tmp_path)


async def test_what_the_group_assigned_is_passed_on(app: Assigned) -> None:
    app.consumer_generation_id = GENERATION
    await app.rebalanced()
    assert app.told == [(GENERATION, {0, 2}, {1})]
    assert app.tables.recovery.completed.is_set()
    assert not app.rebalancing


async def test_nothing_is_if_the_next_rebalance_has_ended_meanwhile(app: Assigned) -> None:
    """Its assignment is there already, and would be taken for that of the generation before."""
    app.consumer_generation_id = GENERATION + 1
    await app.rebalanced()
    assert not app.told
    assert app.rebalancing
