"""``make soak``: faults at random, one after the other on one system, each against the same oracle.

``SOAK_MINUTES`` (30) says how long, ``SOAK_SEED`` which faults in which order; the seed is printed.
"""

from __future__ import annotations

import os
import random
import time
from typing import Final

import pytest

from tests.e2e.faults import (
    test_brokers,
    test_clocks,
    test_gateways,
    test_lanes,
    test_network,
    test_takeover,
    test_workers,
)
from tests.support.faults.rig import Rig


def added_and_removed(rig: Rig) -> None:
    """A worker joins; no other goes but that one, however often this comes."""
    test_workers.test_added(rig)
    test_workers.test_removed(rig)


FAULTS: Final = [
    fault
    for family in (
        test_brokers,
        test_clocks,
        test_gateways,
        test_lanes,
        test_network,
        test_takeover,
        test_workers,
    )
    for name, fault in sorted(vars(family).items())
    if name.startswith("test_") and name not in ("test_added", "test_removed") and callable(fault)
] + [added_and_removed]


@pytest.mark.timeout(0)
def test_random_faults(rig: Rig) -> None:
    minutes = float(os.environ.get("SOAK_MINUTES", "30"))
    seed = int(os.environ.get("SOAK_SEED", random.SystemRandom().randrange(10**6)))
    print(f"\nSOAK_SEED={seed} SOAK_MINUTES={minutes:g}")
    choice = random.Random(seed)
    until = time.monotonic() + minutes * 60
    while time.monotonic() < until:
        fault = choice.choice(FAULTS)
        print(f"{fault.__module__.rpartition('.')[2]}.{fault.__name__}", flush=True)
        fault(rig)
