"""A frozen worker whose instance id another worker takes over, like a replacement on another machine."""

from __future__ import annotations

import signal

from stoplog_worker.worker import EXIT_CONFIG

from tests.support.faults.report import Targets
from tests.support.faults.rig import Rig
from tests.support.system import PATIENCE_S, eventually


def frozen_worker_replaced_and_woken(rig: Rig) -> None:
    with rig.fault("worker: SIGSTOP, id taken over, SIGCONT", targets=Targets(kept_s=0.5)) as fault:
        victim = rig.most_loaded(fault.gateways[0])
        fault.moved = rig.owned_by(fault.gateways[0], victim)
        victim.signal(signal.SIGSTOP)
        replacement = rig.replace(victim, home=rig.system.folder / "elsewhere")
        eventually(
            "the replacement judges",
            lambda: bool(replacement.lines("judging from")),
            on_failure=rig.system.logs,
        )
        victim.signal(signal.SIGCONT)
        victim.join(PATIENCE_S)
        assert victim.status == EXIT_CONFIG
        assert len(victim.lines("CRITICAL", "another worker has joined the group as")) == 1
    replacement.stop()
    rig.system.workers.remove(replacement)
    rig.system.workers.append(victim)
    with rig.joining(victim):
        victim.start()
