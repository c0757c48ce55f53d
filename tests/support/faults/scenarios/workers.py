"""Workers that are killed, stopped, frozen, added, or lose their disk."""

from __future__ import annotations

import shutil
import signal
import time

from tests.support.faults.report import Targets, machine_is_fast
from tests.support.faults.rig import HARMLESS_S, Rig, logged_at
from tests.support.system import eventually

SESSION_S = 6.0
LAPSED = "the group lease ran out"


def worker_killed(rig: Rig) -> None:
    with rig.fault(
        "worker: kill -9, not started again", targets=Targets(moved_s=6.5, kept_s=0.5), certain=True
    ) as fault:
        victim = rig.most_loaded(fault.gateways[0])
        victim.kill()
        rig.await_takeover(fault)
    with rig.joining(victim):
        victim.start()


def worker_killed_short_session(rig: Rig) -> None:
    for worker in list(rig.system.workers):
        rig.restart(worker, session_timeout_ms=3_000)
    with rig.fault(
        "worker: kill -9, not started again, session timeout 3 s",
        targets=Targets(moved_s=3.5, kept_s=0.5),
        certain=True,
    ) as fault:
        victim = rig.most_loaded(fault.gateways[0])
        before, killed_at = rig.assignments_of_others(victim), time.time()
        victim.kill()
        rig.await_takeover(fault)
        assigned_at = min(map(logged_at, rig.assignments_of_others(victim) - before))
        print(f"assigned to another worker after {assigned_at - killed_at:.1f} s")
        # With the default session timeout, the group would still wait for the victim at this time.
        assert assigned_at - killed_at < 0.9 * SESSION_S or not machine_is_fast()
    with rig.joining(victim):
        victim.start()
    for worker in list(rig.system.workers):
        rig.restart(worker)


def worker_stopped(rig: Rig) -> None:
    with rig.fault("worker: SIGTERM", targets=Targets(moved_s=2, kept_s=0.5)) as fault:
        victim = rig.most_loaded(fault.gateways[0])
        before, stopped_at = rig.assignments_of_others(victim), time.time()
        assert victim.stop() == 0
        rig.await_takeover(fault)
        assigned_at = min(map(logged_at, rig.assignments_of_others(victim) - before))
        # Without a request to leave, the group would have waited for the session timeout.
        assert assigned_at - stopped_at < 0.9 * SESSION_S
    with rig.joining(victim):
        victim.start()


def worker_killed_and_restarted(rig: Rig) -> None:
    with rig.fault("worker: kill -9, started again at once", targets=Targets(moved_s=3, kept_s=0.5)) as fault:
        victim = rig.most_loaded(fault.gateways[0])
        fault.moved = rig.owned_by(fault.gateways[0], victim)
        before = rig.assignments_of_others(victim)
        victim.kill()
        with rig.joining(victim):
            victim.start()
    # The victim got its own partitions back, so no other worker got a new assignment.
    assert rig.assignments_of_others(victim) == before


def worker_frozen_and_woken(rig: Rig) -> None:
    with rig.fault(
        "worker: SIGSTOP for 12 s, SIGCONT (zombie)", targets=Targets(kept_s=0.5), certain=True, episodes=2
    ) as fault:
        victim = rig.most_loaded(fault.gateways[0])
        lapses = len(victim.lines("WARNING", LAPSED))
        fault.moved = rig.owned_by(fault.gateways[0], victim)
        victim.signal(signal.SIGSTOP)
        time.sleep(2 * SESSION_S)  # the fault itself: frozen for longer than the session timeout
        with rig.joining(victim):
            victim.signal(signal.SIGCONT)
        assert len(victim.lines("WARNING", LAPSED)) == lapses + 1


def worker_joins_and_leaves(rig: Rig) -> None:
    with rig.fault("worker: one joins", targets=Targets(moved_s=2, kept_s=0.5)) as fault:
        rig.system.add_worker()
        eventually(
            "every worker judges partitions",
            lambda: rig.every_worker_owns(fault.gateways[0]),
            on_failure=rig.system.logs,
        )
    with rig.fault("worker: the one that joined leaves", targets=Targets(moved_s=2, kept_s=0.5)) as fault:
        assert rig.system.workers.pop().stop() == 0
        rig.await_takeover(fault)


def worker_disk_wiped(rig: Rig) -> None:
    with rig.fault("worker: kill -9, disk wiped, started again", targets=Targets(kept_s=0.5)) as fault:
        victim = rig.most_loaded(fault.gateways[0])
        fault.moved = rig.owned_by(fault.gateways[0], victim)
        victim.kill()
        shutil.rmtree(rig.system.folder / victim.name)
        with rig.joining(victim):
            victim.start()


def all_workers_down(rig: Rig) -> None:
    with rig.fault("all workers: kill -9, down for 20 s", certain=True, most_s=50) as fault:
        for worker in rig.system.workers:
            worker.kill()
        time.sleep(20)  # the fault itself: an outage of that length
        for worker in rig.system.workers:
            worker.start()
        rig.await_takeover(fault)


def rolling_restart(rig: Rig) -> None:
    with rig.fault(
        "all workers: SIGTERM and start, one after the other", episodes=3, most_s=HARMLESS_S
    ) as fault:
        for worker in rig.system.workers:
            assert worker.stop() == 0
            with rig.joining(worker):
                worker.start()
            rig.await_takeover(fault)


def no_fault(rig: Rig) -> None:
    """Cause no fault: the control."""
    with rig.fault("none", most_s=HARMLESS_S) as fault:
        rig.await_answers(fault)
