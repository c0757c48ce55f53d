"""Workers killed, stopped, frozen, added, wiped."""

from __future__ import annotations

import shutil
import signal
import time

from tests.support.faults.report import Targets
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
        told, killed_at = rig.assignments_of_others(victim), time.time()
        victim.kill()
        rig.await_takeover(fault)
        told_at = min(map(logged_at, rig.assignments_of_others(victim) - told))
        # However busy the machine: by the usual timeout the group would still wait for it.
        assert told_at - killed_at < 0.9 * SESSION_S
    with rig.joining(victim):
        victim.start()
    for worker in list(rig.system.workers):
        rig.restart(worker)


def worker_stopped(rig: Rig) -> None:
    with rig.fault("worker: SIGTERM", targets=Targets(moved_s=2, kept_s=0.5)) as fault:
        victim = rig.most_loaded(fault.gateways[0])
        told, stopped_at = rig.assignments_of_others(victim), time.time()
        assert victim.stop() == 0
        rig.await_takeover(fault)
        told_at = min(map(logged_at, rig.assignments_of_others(victim) - told))
        # However busy the machine: had it not left, the group would have waited for it.
        assert told_at - stopped_at < 0.9 * SESSION_S
    with rig.joining(victim):
        victim.start()


def worker_killed_and_restarted(rig: Rig) -> None:
    with rig.fault("worker: kill -9, started again at once", targets=Targets(moved_s=3, kept_s=0.5)) as fault:
        victim = rig.most_loaded(fault.gateways[0])
        fault.moved = rig.owned_by(fault.gateways[0], victim)
        told = rig.assignments_of_others(victim)
        victim.kill()
        with rig.joining(victim):
            victim.start()
    # It took its own place, so the group had nothing to tell anybody else.
    assert rig.assignments_of_others(victim) == told


def worker_frozen_and_woken(rig: Rig) -> None:
    with rig.fault(
        "worker: SIGSTOP for 12 s, SIGCONT (zombie)", targets=Targets(kept_s=0.5), certain=True, episodes=2
    ) as fault:
        victim = rig.most_loaded(fault.gateways[0])
        lapses = len(victim.lines("WARNING", LAPSED))
        fault.moved = rig.owned_by(fault.gateways[0], victim)
        victim.signal(signal.SIGSTOP)
        time.sleep(2 * SESSION_S)
        with rig.joining(victim):
            victim.signal(signal.SIGCONT)
        assert len(victim.lines("WARNING", LAPSED)) == lapses + 1


def worker_joins_and_leaves(rig: Rig) -> None:
    with rig.fault("worker: one joins", targets=Targets(moved_s=2, kept_s=0.5)) as fault:
        rig.system.add_worker()
        eventually(
            "it has its share", lambda: rig.every_worker_owns(fault.gateways[0]), on_failure=rig.system.logs
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
        time.sleep(20)
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
    """The control."""
    with rig.fault("none", most_s=HARMLESS_S) as fault:
        rig.await_answers(fault)
