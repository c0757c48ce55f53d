"""The faults. :data:`SCENARIOS` has them in the order in which one system meets them.

Each scenario is a function of the :class:`~tests.support.faults.rig.Rig`. It causes its fault within
``rig.fault(...)``, which compares everything with the log, and leaves all processes running.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.support.faults.rig import Rig
from tests.support.faults.scenarios.brokers import broker_killed_and_restarted, two_brokers_stopped
from tests.support.faults.scenarios.clocks import (
    gateway_clock_ahead,
    leader_clock_ahead_then_right,
    worker_clock_ahead_then_behind,
)
from tests.support.faults.scenarios.gateways import (
    gateway_cut_off_from_brokers,
    gateway_frozen_and_woken,
    gateway_killed,
    gateway_with_half_open_connections,
    gateway_with_long_lists,
)
from tests.support.faults.scenarios.growth import (
    partitions_grow_while_brokers_and_the_command_are_killed,
    partitions_grow_while_workers_and_gateways_are_killed,
)
from tests.support.faults.scenarios.lanes import worker_killed_beside_second_lane
from tests.support.faults.scenarios.limits import limits_changed_at_other_gateway
from tests.support.faults.scenarios.network import worker_cut_off_from_brokers
from tests.support.faults.scenarios.partitions import checks_gets_another_partition
from tests.support.faults.scenarios.relay_keys import workers_get_new_relay_key
from tests.support.faults.scenarios.takeover import frozen_worker_replaced_and_woken
from tests.support.faults.scenarios.workers import (
    all_workers_down,
    no_fault,
    rolling_restart,
    worker_disk_wiped,
    worker_frozen_and_woken,
    worker_joins_and_leaves,
    worker_killed,
    worker_killed_and_restarted,
    worker_killed_short_session,
    worker_stopped,
)

Scenario = Callable[[Rig], None]

SCENARIOS: Final[tuple[Scenario, ...]] = (
    no_fault,
    broker_killed_and_restarted,
    two_brokers_stopped,
    gateway_clock_ahead,
    worker_clock_ahead_then_behind,
    leader_clock_ahead_then_right,
    gateway_killed,
    gateway_frozen_and_woken,
    gateway_cut_off_from_brokers,
    limits_changed_at_other_gateway,
    worker_killed_beside_second_lane,
    worker_cut_off_from_brokers,
    frozen_worker_replaced_and_woken,
    worker_killed,
    worker_killed_short_session,
    worker_stopped,
    worker_killed_and_restarted,
    worker_frozen_and_woken,
    worker_joins_and_leaves,
    worker_disk_wiped,
    all_workers_down,
    rolling_restart,
    partitions_grow_while_workers_and_gateways_are_killed,
    partitions_grow_while_brokers_and_the_command_are_killed,
)
"""``no_fault`` comes first: its figures tell whether this machine is fast enough to judge seconds. Growing
comes last, since the number of partitions stays."""

SOAK_SCENARIOS: Final[tuple[Scenario, ...]] = (
    *SCENARIOS,
    gateway_with_half_open_connections,
    gateway_with_long_lists,
    workers_get_new_relay_key,
    checks_gets_another_partition,
)
"""All of the above, and those that change the system for all later faults or have end-to-end tests of their
own, so that the fault tests need not take their time."""
