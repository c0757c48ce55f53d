"""``make soak``: random faults, one after the other, on one system. After each, the log is the oracle.

Every fault comes once before any comes again. The workers get a relay key first, so all faults meet signed
updates. Seconds are reported and not judged: the fault suite judges them. ``SOAK_MINUTES`` (default: 30)
limits the time. ``SOAK_SEED`` fixes the order. The seed is printed.
"""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.support.faults import report
from tests.support.faults.random_rounds import random_rounds
from tests.support.faults.rigs import Rigs
from tests.support.faults.scenarios import SOAK_SCENARIOS
from tests.support.faults.scenarios.relay_keys import workers_get_new_relay_key


@pytest.mark.needs("faketime")
@pytest.mark.timeout(0)
def test_system_after_random_faults_agrees_with_the_log(rigs: Rigs) -> None:
    minutes = float(os.environ.get("SOAK_MINUTES", "30"))
    seed = int(os.environ.get("SOAK_SEED", random.SystemRandom().randrange(10**6)))
    print(f"\nSOAK_SEED={seed} SOAK_MINUTES={minutes:g}")
    report.report_only()
    with rigs.lend() as rig:
        control, *_ = SOAK_SCENARIOS
        control(rig)
        workers_get_new_relay_key(rig)
        until = time.monotonic() + minutes * 60
        for scenario in random_rounds(SOAK_SCENARIOS, seed):
            if time.monotonic() > until:
                break
            print(scenario.__name__, flush=True)
            scenario(rig)
