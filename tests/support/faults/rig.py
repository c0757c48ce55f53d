"""Run a fault under load: the store answers before and after it, and everything agrees with the log."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

from stoplog_worker.algorithm.relay_keys import parse_relay_keys
from stoplog_worker.algorithm.state_codec import MARKER_KEY, decode_marker
from stoplog_worker.state.store import POLICIES

from stoplog.client.fail_open import GROWING
from tests.support.faults.check_sender import HOT_CLIENTS
from tests.support.faults.cluster import Cluster, shifted
from tests.support.faults.load import (
    LAST_S,
    PARTITIONS,
    Load,
    SentCheck,
    exact_s,
    failed_open_s,
    running_load,
)
from tests.support.faults.oracle import (
    HttpAnswers,
    Oracle,
    Truth,
    check_state,
    checkpointed,
    read_tables,
)
from tests.support.faults.partition_fold import Table
from tests.support.faults.report import ROWS, Row, Targets, machine_is_fast
from tests.support.system import Gateway, Process, System, eventually

HEALTHY_S: Final = 1.5
"""Seconds for which the store must have answered all partitions before the system counts as healthy."""

NONE: Final = Targets()

DEFAULT_LANE: Final = "a"

HARMLESS_S: Final = 5.0
"""Seconds for which a fault that should harm nobody may make a partition fail open."""

DEADLINE_MS: Final = 250
"""Deadline of the gateways, unless a scenario sets another."""


MOST_HOT: Final = len(HOT_CLIENTS) - 1
"""Hot clients that must have a lease at each gateway before a fault. A change may just have ended one."""


def logged_at(line: str) -> float:
    """Return the time of a log line, in seconds since the Unix epoch."""
    return datetime.fromisoformat(line[:23]).timestamp()


def all_normal(gateways: list[Gateway]) -> bool:
    """Return whether no gateway is degraded."""
    return all(gateway.report()["mode"] == "normal" for gateway in gateways)


class Fault:
    """A fault while it runs: the gateways, the load, and the partitions that change their owner."""

    def __init__(self, gateways: list[Gateway], load: Load) -> None:
        self.gateways = gateways
        self.load = load
        self.at = time.monotonic()
        self.moved: set[int] = set()
        self.restarted: list[Gateway] = []
        """Gateways that were killed and started again: their counts have begun anew."""

    @property
    def partitions(self) -> range:
        """The partitions that there are now."""
        return range(self.load.partitions)

    def restart(self, gateway: Gateway) -> None:
        """Kill *gateway* and start it again."""
        gateway.kill()
        gateway.start()
        self.restarted.append(gateway)

    def begin(self) -> None:
        """Measure from now on."""
        self.at = time.monotonic()

    def send_list(self, gateway: Gateway, clients: Sequence[str]) -> None:
        """Send one list with a check of each of *clients*, beside the load.

        The answers are compared with the log. They do not enter the measurements.
        """
        checks = [{"client_id": client} for client in clients]
        sent_at = time.monotonic()
        response = gateway.http.post("/v1/checks", json=checks, timeout=LAST_S)
        ended_at = time.monotonic()
        answers = response.raise_for_status().json()
        self.load.aside += [
            SentCheck(gateway.url, client, sent_at, ended_at, answer)
            for client, answer in zip(clients, answers, strict=True)
        ]

    def seconds(self, partitions: set[int]) -> float | None:
        """Return for how long the worst of *partitions* failed open; ``None`` if there are none."""
        seconds = failed_open_s(self.load.sent, self.at, self.load.partitions)
        return max((seconds[partition] for partition in partitions), default=None)

    @property
    def unpublished(self) -> int:
        """How many checks were answered without the store because the number of partitions grew."""
        return sum(one.answer is not None and one.answer["reason"] == GROWING for one in self.load.sent)

    @property
    def hot_s(self) -> float | None:
        """Seconds for which hot clients of the partitions that moved, or of all, got exact answers."""
        return exact_s(self.load.sent, self.at, self.moved or self.partitions, self.load.partitions)

    @property
    def moved_s(self) -> float | None:
        """Seconds of failing open of the partitions that changed their owner."""
        return self.seconds(self.moved)

    @property
    def kept_s(self) -> float | None:
        """Seconds of failing open of the partitions that kept their owner."""
        return self.seconds(set(self.partitions) - self.moved)


class Rig:
    """Cluster, workers and oracle, shared by all faults. Each fault starts its own gateways."""

    def __init__(self, cluster: Cluster, system: System) -> None:
        self.cluster = cluster
        self.system = system
        self.partitions = PARTITIONS
        self.oracle = Oracle(cluster.bootstrap)
        self.relay_keys: list[str] = []
        """Relay keys of all workers, as ``STOPLOG_RELAY_KEYS`` has them. The first one signs."""
        self.answers = HttpAnswers(0, Counter())
        """The answers that were compared after the last fault."""
        self._logged = 0

    def set_relay_keys(self, keys: Sequence[str]) -> None:
        """Give *keys* to all workers that are added from now on, and to the oracle."""
        self.relay_keys = list(keys)
        self.system.worker_settings["relay_keys"] = ",".join(keys)
        self.oracle.relay_keys = parse_relay_keys(",".join(keys))

    def owners(self, gateway: Gateway) -> dict[int, str]:
        """Return the worker that judges each partition, in the default lane."""
        return {
            int(partition): node["id"].split("@")[0]
            for node in gateway.report()["nodes"]
            for partition, state in node["partitions"].items()
            if state["state"] == "running" and node["lane"] == DEFAULT_LANE
        }

    def owned_by(self, gateway: Gateway, worker: Process) -> set[int]:
        """Return the partitions that *worker* judges."""
        return {p for p, name in self.owners(gateway).items() if name == worker.name}

    def most_loaded(self, gateway: Gateway) -> Process:
        """Return the worker with the most partitions."""
        return max(self.system.workers, key=lambda worker: len(self.owned_by(gateway, worker)))

    def settled(self, gateway: Gateway) -> bool:
        """Return whether a running worker judges every partition."""
        owners = self.owners(gateway)
        running = {worker.name for worker in self.system.workers if worker.status is None}
        return len(owners) == self.partitions and set(owners.values()) <= running

    def every_worker_owns(self, gateway: Gateway) -> bool:
        """Return whether every worker judges at least one partition."""
        return len(set(self.owners(gateway).values())) == len(self.system.workers)

    def replace(self, old: Process, **how: Any) -> Process:
        """Start another worker under the instance id of *old*, in its place. *old* itself is not touched."""
        new = self.system.add_worker(instance_id=old.name, **how)
        new.name = old.name
        self.system.workers.remove(old)
        return new

    def restart(self, old: Process, **how: Any) -> Process:
        """Stop *old* and start it again with other settings or another environment."""
        assert old.stop() == 0
        new = self.replace(old, **how)
        eventually(f"{new.name} has joined", lambda: bool(new.lines("generation")))
        return new

    def restart_with_partitions(self, old: Process, **how: Any) -> Process:
        """Restart *old*, then the others, so that partitions move to the one that has none."""
        new = self.restart(old, **how)
        for worker in [worker for worker in self.system.workers if worker is not new]:
            with self.joining(worker):
                assert worker.stop() == 0
                worker.start()
        return new

    @contextmanager
    def joining(self, worker: Process) -> Iterator[None]:
        """Return from the block once the group has given *worker* a new assignment."""
        before = len(worker.lines("generation"))
        yield
        eventually(
            f"{worker.name} has joined",
            lambda: len(worker.lines("generation")) > before,
            on_failure=self.system.logs,
        )

    def assignments_of_others(self, worker: Process) -> set[str]:
        """Return the log lines with which all workers but *worker* report an assignment."""
        return {
            line for other in self.system.workers if other is not worker for line in other.lines("generation")
        }

    @contextmanager
    def second_lane(self) -> Iterator[Process]:
        """Run a worker of a second lane during the block, outside :attr:`System.workers`; return it.

        Its changelogs and tables are compared with the log at the end.
        """
        self.cluster.create_lane("b")
        self.system.add_worker(lane="b")
        worker = self.system.workers.pop()
        try:
            eventually(
                "the lane judges everything",
                lambda: len(worker.lines("judging from")) == self.partitions,
                on_failure=lambda: worker.tail(30),
            )
            yield worker
            oracle = Oracle(self.cluster.bootstrap, lane="b", relay_keys=self.oracle.relay_keys)
            truths = self.check_changelogs(oracle)
            for partition, truth in enumerate(truths):
                self._check_table(worker.name, worker.tables, partition, truth)
        finally:
            status = worker.stop()  # otherwise it would answer for the workers in all later faults
        assert status == 0

    def await_takeover(self, fault: Fault) -> None:
        """Return when the running workers judge all partitions."""
        eventually("others take over", lambda: self.settled(fault.gateways[0]), on_failure=self.system.logs)

    def await_answers(self, fault: Fault, checks: int = 2_000) -> None:
        """Return when *checks* more checks have been answered."""
        enough = len(fault.load.sent) + checks
        eventually(f"{checks} more checks", lambda: len(fault.load.sent) > enough)

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
        proxied: bool = False,
        jumps: bool = False,
    ) -> Iterator[Fault]:
        """Put load on the system while the block does harm, then compare everything with the log.

        The block must leave every process running that should run. Seconds and spells of degraded mode are
        judged only on a fast machine.

        Args:
            name: Name in the report.
            targets: Printed beside the measurement.
            episodes: How often degraded mode may begin at one gateway.
            certain: Degraded mode must begin, at each gateway.
            most_s: Seconds for which a partition without a target may fail open.
            deadline_ms: Deadline of the gateways.
            clocks_s: Seconds by which the wall clock of each gateway is ahead.
            proxied: Whether the last gateway reaches the brokers over the proxies.
            jumps: Whether the clock of a leader jumps, which ends windows early, once.
        """
        with self._gateways(clocks_s, deadline_ms, proxied=proxied) as started:
            urls = [gateway.url for gateway in started]
            with running_load(urls, seed=len(ROWS), partitions=self.partitions) as load:
                fault = Fault(started, load)
                eventually(
                    "hot clients have leases at every gateway",
                    lambda: all(one.metric("stoplog_leases") >= MOST_HOT for one in started),
                    on_failure=self.system.logs,
                )
                eventually(
                    "the store answers all partitions",
                    lambda: load.healthy_for(HEALTHY_S),
                    on_failure=self.system.logs,
                )
                eventually("normal mode", lambda: all_normal(started))
                before = self.owners(started[0])
                spells = {gateway.name: gateway.degraded_spells() for gateway in started}
                fault.begin()
                yield fault
                # A harmless fault ends at once: send some checks during it.
                self.await_answers(fault, 300)
                eventually(
                    "the store answers all partitions again",
                    lambda: load.healthy_for(HEALTHY_S),
                    on_failure=self.system.logs,
                )
                alive = [gateway for gateway in started if gateway.status is None]
                eventually("normal mode again", lambda: all_normal(alive))
                for worker in self.system.workers:
                    # Running, stopped or killed: no worker has ended by itself.
                    assert worker.status in (None, 0, -signal.SIGKILL), worker.tail()
                after = self.owners(alive[0])
                fault.moved |= {p for p in fault.partitions if before.get(p) != after.get(p)}
                ended = time.monotonic()
            answered = [
                one for one in load.sent if fault.at <= one.sent_at < ended and one.answer is not None
            ]
            per_s = len(answered) / (ended - fault.at)
            compared = self.compare(fault, jumps=jumps)
            self.check_tables(self.places(alive[0]))
            failed_open = sum(one.answer is not None and not one.decided for one in load.sent)
            p99_ms = quantiles([(one.ended_at - one.sent_at) * 1_000 for one in answered], n=100)[98]
            row = Row(
                name,
                fault.moved_s,
                fault.kept_s,
                targets,
                per_s,
                p99_ms,
                failed_open,
                compared,
                self.answers.leased.total(),
                fault.hot_s,
            )
            ROWS.append(row)
            print("\n", row)
            fast = machine_is_fast()
            if fast:
                row.check(most_s)
            for gateway in alive:
                if gateway in fault.restarted:  # it may have been killed in degraded mode
                    continue
                earlier, now = spells[gateway.name], gateway.degraded_spells()
                spells_began, spells_ended = now[0] - earlier[0], now[1] - earlier[1]
                assert certain <= spells_began == spells_ended, gateway.lines("WARNING")
                # A slow machine misses deadlines by itself, so it may become degraded more often.
                assert spells_began <= episodes or not fast, gateway.lines("WARNING")

    @contextmanager
    def _gateways(
        self, clocks_s: Sequence[int], deadline_ms: int, *, proxied: bool
    ) -> Iterator[list[Gateway]]:
        """Start one gateway per clock, and wait until a worker judges every partition."""
        last = {"kafka": self.cluster.over_proxies} if proxied else {}
        started = [
            self.system.add_gateway(
                env=shifted(ahead_s) if ahead_s else None,
                deadline_ms=deadline_ms,
                **(last if index == len(clocks_s) - 1 else {}),
            )
            for index, ahead_s in enumerate(clocks_s)
        ]
        try:
            self.system.wait_ready()
            eventually(
                "a worker judges every partition",
                lambda: self.settled(started[0]),
                on_failure=self.system.logs,
            )
            yield started
        finally:
            for gateway in started:
                if gateway.status is None:
                    gateway.stop()
                self.system.gateways.remove(gateway)

    def compare(self, fault: Fault, *, jumps: bool) -> int:
        """Compare replies, HTTP answers and changelogs with the log, and the admissions with the limits.

        Every answered check must be in the log, apart from those that its gateway reports as uncounted, and
        those that leases answered. No check is in the log that was answered while the partitions grew.

        Returns:
            How many decisions were compared.
        """
        load = fault.load
        alive = [gateway for gateway in fault.gateways if gateway.status is None]
        # A gateway that was killed has taken its counts with it.
        counting = [gateway for gateway in alive if gateway not in fault.restarted]
        eventually("all leases are settled", lambda: not any(one.metric("stoplog_leases") for one in alive))
        truths = self.check_changelogs(self.oracle)
        logged = sum(truth.checks for truth in truths)
        new, self._logged = logged - self._logged, logged
        sent = load.sent + load.aside
        replies = self.oracle.check_replies(truths)
        self.answers = self.oracle.check_http(truths, sent)
        uncounted = sum(gateway.count("stoplog_checks_uncounted_total") for gateway in counting)
        permits = sum(int(gateway.metric("stoplog_lease_permits_used_total")) for gateway in counting)
        if len(counting) < len(fault.gateways):
            permits += self.answers.leased.total()
        restarted = {gateway.url for gateway in fault.restarted}
        uncounted += sum(
            one.gateway in restarted and one.answer is not None and not one.decided for one in sent
        )
        answered = sum(one.answer is not None for one in sent)
        numbers = (answered, uncounted, permits, new, fault.unpublished)
        assert answered - uncounted - permits <= new <= len(sent) - fault.unpublished, numbers
        assert replies >= self.answers.decided > 0
        if not jumps:
            assert self.oracle.check_windows(truths, sent) > 0
        return replies + self.answers.decided

    def check_changelogs(self, oracle: Oracle) -> list[Truth]:
        """Wait for the checkpoints, then compare the stored state and the committed offsets with the log.

        Returns:
            The state of each partition according to the log.
        """
        truths: list[Truth] = []
        stored: list[dict[str, Table]] = []

        def all_written() -> bool:
            # Late or relayed records may have arrived since the last reading.
            truths[:], stored[:] = oracle.read_with_stored()
            return checkpointed(truths, stored) and not oracle.unrepaired() and oracle.relayed(truths)

        eventually(
            "checkpoints written, changelogs repaired, updates relayed",
            all_written,
            on_failure=lambda: self.behind(oracle, truths) + self.system.logs(),
        )
        for partition, (truth, tables) in enumerate(zip(truths, stored, strict=True)):
            check_state(partition, truth, tables, "changelog")
        ends = [truth.marker.next_offset for truth in truths]
        eventually("all committed", lambda: oracle.committed() == ends)
        return truths

    def behind(self, oracle: Oracle, truths: Sequence[Truth]) -> str:
        """Describe the end and the marker of each partition."""
        ends = [truth.marker.next_offset for truth in truths]
        markers = [decode_marker(tables[POLICIES][MARKER_KEY]).next_offset for tables in oracle.stored()]
        return (
            f"logs end at {ends}, markers are at {markers}; not repaired: {oracle.unrepaired()}; "
            f"refused updates: {[truth.lost_updates for truth in truths]}\n"
        )

    def places(self, gateway: Gateway) -> dict[str, list[int]]:
        """Return the partitions of which each worker is the active owner or a standby."""
        return {
            node["id"].split("@")[0]: [int(partition) for partition in node["partitions"]]
            for node in gateway.report()["nodes"]
            if node["role"] == "worker" and node["lane"] == DEFAULT_LANE
        }

    def check_tables(self, places: dict[str, list[int]]) -> None:
        """Compare the tables on the disks of the running workers with the log."""
        truths = self.oracle.read()
        # A worker that was just killed is still listed, because of its last heartbeat.
        for worker in self.system.workers:
            if worker.status is None:
                for partition in places[worker.name]:
                    self._check_table(worker.name, worker.tables, partition, truths[partition])

    def _check_table(self, name: str, folder: Path, partition: int, truth: Truth) -> None:

        def difference() -> str | None:
            try:
                check_state(partition, truth, read_tables(folder, partition), name)
            except AssertionError as exc:
                return str(exc)
            return None

        # A standby reads the changelogs a moment later, each by itself.
        eventually(
            f"{name}'s tables of partition {partition} agree with the log",
            lambda: difference() is None,
            on_failure=lambda: str(difference()),
        )
