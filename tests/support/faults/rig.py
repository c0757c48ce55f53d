"""A fault under load: all is well before it and after it, and the log agrees with everything."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

from stoplog_worker.algorithm.ledger import MARKER_KEY, decode_marker
from stoplog_worker.state.store import POLICIES

from tests.support.faults.cluster import Cluster, shifted
from tests.support.faults.load import PARTITIONS, Load, late_s, running_load
from tests.support.faults.oracle import Oracle, Truth, check_state, flushed, read_tables
from tests.support.faults.report import ROWS, Row, Targets
from tests.support.system import Gateway, Process, System, eventually

WELL_S: Final = 1.5
"""All partitions answered by the store for this long: all is well."""

NONE: Final = Targets()

DEFAULT_LANE: Final = "a"

LEAST_PER_S: Final = 500
"""Checks asked in a second, of 640 that are meant to be; how many it was is printed."""

HARMLESS_S: Final = 5.0
"""For which a partition may be let through by what ought to harm nobody."""

DEADLINE_MS: Final = 250
"""A gateway's, if nothing else is set."""

BEGAN: Final = "degraded: checks are let through"
ENDED: Final = "normal again"


def told(gateway: Gateway) -> tuple[int, int]:
    """How often it has said that degraded mode began, and that it ended."""
    return len(gateway.lines("WARNING", BEGAN)), len(gateway.lines("WARNING", ENDED))


def logged_at(line: str) -> float:
    """Seconds since the Unix epoch, of a line of a process's log."""
    return datetime.fromisoformat(line[:23]).timestamp()


def normal(gateways: list[Gateway]) -> bool:
    """Whether none is degraded."""
    return all(gateway.report()["mode"] == "normal" for gateway in gateways)


class Fault:
    """What is known of a fault while it runs."""

    def __init__(self, gateways: list[Gateway], load: Load) -> None:
        self.gateways = gateways
        self.load = load
        self.at = time.monotonic()
        self.moved: set[int] = set()

    def strikes(self) -> None:
        """Now."""
        self.at = time.monotonic()

    def seconds(self, partitions: set[int]) -> float | None:
        """For which the worst of *partitions* was let through; ``None`` of none."""
        late = late_s(self.load.asked, self.at)
        return max((late[partition] for partition in partitions), default=None)

    @property
    def moved_s(self) -> float | None:
        """Of the partitions that changed their owner."""
        return self.seconds(self.moved)

    @property
    def kept_s(self) -> float | None:
        """Of those that did not."""
        return self.seconds(set(range(PARTITIONS)) - self.moved)


class Rig:
    """Cluster, workers and oracle, used by one fault after another; each has gateways of its own."""

    def __init__(self, cluster: Cluster, system: System) -> None:
        self.cluster = cluster
        self.system = system
        self.oracle = Oracle(cluster.bootstrap)
        self._logged = 0

    def owners(self, gateway: Gateway) -> dict[int, str]:
        """Who judges each partition, in the default lane."""
        return {
            int(partition): node["id"].split("@")[0]
            for node in gateway.report()["nodes"]
            for partition, beat in node["partitions"].items()
            if beat["state"] == "running" and node["lane"] == DEFAULT_LANE
        }

    def owned_by(self, gateway: Gateway, worker: Process) -> set[int]:
        """The partitions that *worker* judges."""
        return {p for p, name in self.owners(gateway).items() if name == worker.name}

    def most_loaded(self, gateway: Gateway) -> Process:
        """The worker with the most partitions."""
        return max(self.system.workers, key=lambda worker: len(self.owned_by(gateway, worker)))

    def settled(self, gateway: Gateway) -> bool:
        """Whether every partition is judged by a worker that runs."""
        owners = self.owners(gateway)
        running = {worker.name for worker in self.system.workers if worker.status is None}
        return len(owners) == PARTITIONS and set(owners.values()) <= running

    def all_at_work(self, gateway: Gateway) -> bool:
        """Whether every worker judges something."""
        return len(set(self.owners(gateway).values())) == len(self.system.workers)

    def replace(self, old: Process, **how: Any) -> Process:
        """Start another worker under *old*'s instance id and in its place; *old* itself is not touched."""
        new = self.system.add_worker(instance_id=old.name, **how)
        new.name = old.name
        self.system.workers.remove(old)
        return new

    def restart(self, old: Process, **how: Any) -> Process:
        """Stop *old*, and start it again with other settings or another environment."""
        assert old.stop() == 0
        new = self.replace(old, **how)
        eventually(f"{new.name} has joined", lambda: bool(new.lines("generation")))
        return new

    def restart_at_work(self, old: Process, **how: Any) -> Process:
        """As :meth:`restart`, and then the others too: what they leave comes to the one that has nothing."""
        new = self.restart(old, **how)
        for worker in [worker for worker in self.system.workers if worker is not new]:
            with self.joining(worker):
                assert worker.stop() == 0
                worker.start()
        return new

    @contextmanager
    def joining(self, worker: Process) -> Iterator[None]:
        """The block ends when the group has told *worker* once more what is its."""
        before = len(worker.lines("generation"))
        yield
        eventually(
            f"{worker.name} has joined",
            lambda: len(worker.lines("generation")) > before,
            on_failure=self.system.logs,
        )

    def told_others(self, worker: Process) -> set[str]:
        """What the group has told all workers but *worker*: a log line for every new generation."""
        return {
            line for other in self.system.workers if other is not worker for line in other.lines("generation")
        }

    @contextmanager
    def second_lane(self) -> Iterator[None]:
        """A worker of another lane judges all partitions, too; it is none of :attr:`System.workers`.

        Its changelogs and tables are held against the log in the end.
        """
        self.cluster.create_lane("b")
        self.system.add_worker(lane="b")
        worker = self.system.workers.pop()
        try:
            eventually(
                "the lane judges everything",
                lambda: len(worker.lines("judging from")) == PARTITIONS,
                on_failure=lambda: worker.tail(30),
            )
            yield
            truths = self.check_changelogs(Oracle(self.cluster.bootstrap, lane="b"))
            for partition, truth in enumerate(truths):
                self._check_table(worker.name, worker.tables, partition, truth)
        finally:
            status = worker.stop()  # whatever went wrong: it would answer for the workers of all later faults
        assert status == 0

    def others_take_over(self, fault: Fault) -> None:
        """Return when the workers that run judge all partitions."""
        eventually("others take over", lambda: self.settled(fault.gateways[0]), on_failure=self.system.logs)

    def runs_on(self, fault: Fault, checks: int = 2_000) -> None:
        """Return when that many more checks have been answered."""
        enough = len(fault.load.asked) + checks
        eventually(f"{checks} more checks", lambda: len(fault.load.asked) > enough)

    @contextmanager
    def fault(
        self,
        name: str,
        *,
        targets: Targets = NONE,
        episodes: int = 1,
        certain: bool = False,
        most_s: float = 20.0,
        deadline_ms: int = DEADLINE_MS,
        clocks_s: Sequence[int] = (0, 0),
    ) -> Iterator[Fault]:
        """Load; the block hurts something, and has to leave all processes running that should.

        Args:
            name: For the table.
            targets: Beside what is measured.
            episodes: How often degraded mode may begin at one gateway.
            certain: It does begin, at each.
            most_s: For how long a partition may be let through for which there is no target.
            deadline_ms: Of the gateways.
            clocks_s: For each gateway, how far its wall clock is ahead.
        """
        with self._gateways(clocks_s, deadline_ms) as started:
            with running_load([gateway.url for gateway in started], seed=len(ROWS)) as load:
                fault = Fault(started, load)
                eventually("all is well", lambda: load.well_for(WELL_S), on_failure=self.system.logs)
                eventually("normal mode", lambda: normal(started))
                before = self.owners(started[0])
                said = {gateway.name: told(gateway) for gateway in started}
                fault.strikes()
                yield fault
                # What harms nobody is over at once, and then nothing would have been asked meanwhile.
                self.runs_on(fault, 300)
                eventually("all is well again", lambda: load.well_for(WELL_S), on_failure=self.system.logs)
                alive = [gateway for gateway in started if gateway.status is None]
                eventually("normal mode again", lambda: normal(alive))
                for worker in self.system.workers:
                    # Running, stopped, or killed: none has ended of its own.
                    assert worker.status in (None, 0, -signal.SIGKILL), worker.tail()
                after = self.owners(alive[0])
                fault.moved |= {p for p in range(PARTITIONS) if before.get(p) != after.get(p)}
                ended = time.monotonic()
            asked = [one for one in load.asked if fault.at <= one.at < ended and one.answer is not None]
            per_s = len(asked) / (ended - fault.at)
            compared = self.compare(load, alive)
            self.check_tables(self.places(alive[0]))
            let_through = sum(one.answer is not None and not one.good for one in load.asked)
            p99_ms = quantiles([(one.until - one.at) * 1_000 for one in asked], n=100)[98]
            row = Row(name, fault.moved_s, fault.kept_s, targets, per_s, p99_ms, let_through, compared)
            ROWS.append(row)
            print("\n", row)
            row.check(most_s)
            assert per_s >= LEAST_PER_S
            for gateway in alive:
                began, ended = (
                    now - then for now, then in zip(told(gateway), said[gateway.name], strict=True)
                )
                assert certain <= began == ended <= episodes, gateway.lines("WARNING")

    @contextmanager
    def _gateways(self, clocks_s: Sequence[int], deadline_ms: int) -> Iterator[list[Gateway]]:
        """Gateways of the caller's own; every partition has its worker."""
        started = [
            self.system.add_gateway(env=shifted(ahead_s) if ahead_s else None, deadline_ms=deadline_ms)
            for ahead_s in clocks_s
        ]
        try:
            self.system.wait_ready()
            eventually(
                "every partition has its worker",
                lambda: self.settled(started[0]),
                on_failure=self.system.logs,
            )
            yield started
        finally:
            for gateway in started:
                if gateway.status is None:
                    gateway.stop()
                self.system.gateways.remove(gateway)

    def compare(self, load: Load, alive: Sequence[Gateway]) -> int:
        """Replies, HTTP answers and changelogs against the log; returns how many decisions were compared.

        And every check that was answered is in the log, but for those that its gateway says are not.
        """
        truths = self.check_changelogs(self.oracle)
        logged = sum(truth.checks for truth in truths)
        new, self._logged = logged - self._logged, logged
        uncounted = sum(gateway.count("stoplog_checks_uncounted_total") for gateway in alive)
        answered = sum(one.answer is not None for one in load.asked)
        assert answered - uncounted <= new <= len(load.asked), (answered, uncounted, new, len(load.asked))
        replies, answers = self.oracle.check_replies(truths), self.oracle.check_http(truths, load.asked)
        assert replies >= answers > 0
        return replies + answers

    def check_changelogs(self, oracle: Oracle) -> list[Truth]:
        """When all is flushed, what *oracle*'s lane has stored and committed against the log.

        Returns what the log says.
        """
        truths = oracle.read()

        def all_flushed() -> bool:
            # What was published late, or relayed, may have come since.
            truths[:] = oracle.read()
            return flushed(truths, oracle.stored()) and not oracle.unmended() and oracle.relayed(truths)

        eventually(
            "all flushed, gaps mended, updates relayed",
            all_flushed,
            on_failure=lambda: self.behind(oracle, truths) + self.system.logs(),
        )
        for partition, (truth, stored) in enumerate(zip(truths, oracle.stored(), strict=True)):
            check_state(partition, truth, stored, "changelog")
        ends = [truth.marker.next_offset for truth in truths]
        eventually("all committed", lambda: oracle.committed() == ends)
        return truths

    def behind(self, oracle: Oracle, truths: Sequence[Truth]) -> str:
        """Each partition's end, and its marker."""
        ends = [truth.marker.next_offset for truth in truths]
        markers = [decode_marker(tables[POLICIES][MARKER_KEY]).next_offset for tables in oracle.stored()]
        return f"logs end at {ends}, markers are at {markers}; not mended: {oracle.unmended()}\n"

    def places(self, gateway: Gateway) -> dict[str, list[int]]:
        """The partitions that each worker judges, or stands by for."""
        return {
            node["id"].split("@")[0]: [int(partition) for partition in node["partitions"]]
            for node in gateway.report()["nodes"]
            if node["role"] == "worker" and node["lane"] == DEFAULT_LANE
        }

    def check_tables(self, places: dict[str, list[int]]) -> None:
        """What workers that run have on disk of *places*, to judge or to stand by, is what the log says."""
        truths = self.oracle.read()
        # One just killed is still among the nodes, by its last beat.
        for worker in self.system.workers:
            if worker.status is None:
                for partition in places[worker.name]:
                    self._check_table(worker.name, worker.tables, partition, truths[partition])

    def _check_table(self, name: str, folder: Path, partition: int, truth: Truth) -> None:

        def caught_up() -> bool:
            # A standby follows its changelog a moment later.
            marker = read_tables(folder, partition)[POLICIES].get(MARKER_KEY)
            return marker is not None and decode_marker(marker).next_offset == truth.marker.next_offset

        eventually(f"{name}'s tables of partition {partition} have all", caught_up)
        check_state(partition, truth, read_tables(folder, partition), name)
