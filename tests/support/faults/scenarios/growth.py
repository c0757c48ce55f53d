"""The number of partitions doubles under load, while processes are killed in every state of the step.

It stays so for all later faults.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from tests.support.faults.rig import Fault, Rig
from tests.support.halting_grow import (
    COPIED,
    COPYING,
    DRAINING,
    GROWING,
    IN_FORCE,
    STATES,
    HaltingGrow,
    halting_grow,
)
from tests.support.up import environment

KILLS: Final = (
    ((GROWING, DRAINING), COPIED),
    ((COPYING, COPIED), IN_FORCE),
)
"""For each run of the command, the states in which a broker is killed, and that in which the command is. The
end-to-end tests of growing kill the command in the states before."""

MOST: Final = 16
"""No scenario makes more partitions: each worker has enough to do with a third of them."""

DEADLINE_MS: Final = 4_000
"""More than a busy machine needs: with the usual 250 ms, checks could fail open before and after the step."""

MOST_S: Final = 120.0
"""Seconds that a step with kills may take."""


def partitions_grow_while_workers_and_gateways_are_killed(rig: Rig) -> None:
    """Kill a worker, of each lane in turn, and a gateway in each state. The command waits for them."""
    number = 2 * rig.partitions
    if number > MOST:
        return
    with (
        rig.second_lane() as other,
        rig.fault(
            f"growing to {number} partitions: kill -9 of a worker and a gateway in each state",
            certain=True,
            most_s=MOST_S,
            deadline_ms=DEADLINE_MS,
        ) as fault,
    ):
        reached: list[str] = []
        with command_of(rig, number) as command:
            for state in command.states():
                turn = len(reached)
                fault.restart(fault.gateways[turn % 2])
                worker = other if turn % 2 else rig.system.workers[turn % len(rig.system.workers)]
                worker.kill()
                worker.start()
                reached.append(state)
        assert (command.status, reached) == (0, list(STATES)), command.errors
        has_grown(rig, fault, number, command)


def partitions_grow_while_brokers_and_the_command_are_killed(rig: Rig) -> None:
    """Kill a broker in each state, and the command in two. Run the command again until it has succeeded.

    Where a broker is replaced too slowly, the command may also give up, and say that it can be run again.
    """
    number = 2 * rig.partitions
    if number > MOST:
        return
    with (
        rig.second_lane(),
        rig.fault(
            f"growing to {number} partitions: kill -9 of a broker in each state, and of the command",
            episodes=len(STATES),
            certain=True,
            most_s=MOST_S,
            deadline_ms=DEADLINE_MS,
        ) as fault,
    ):
        for harmed, fatal in KILLS:
            with command_of(rig, number) as command:
                for state in command.states():
                    if state in harmed:
                        rig.cluster.wait_in_sync()
                        node = rig.cluster.leader_of(0)
                        node.kill()
                        node.launch()
                    if state == fatal:
                        command.kill()
                        break
            print(f"command to be killed when {fatal}: {command.status} {command.errors}")
            assert command.status != 1 or "run" in command.errors, command.errors
        rig.cluster.wait_in_sync()
        with command_of(rig, number) as command:
            assert len(list(command.states())) in (0, len(STATES)), "it tidies up, or grows"
        assert command.status == 0, command.errors
        has_grown(rig, fault, number, command)
        calls = sum(gateway.count("stoplog_checks_uncounted_total") for gateway in fault.gateways)
        assert fault.unpublished <= calls


def has_grown(rig: Rig, fault: Fault, number: int, command: HaltingGrow) -> None:
    """Note that there are *number* partitions."""
    rig.partitions = fault.load.partitions = number
    print(f"{fault.unpublished} checks were not counted; {command.report}")
    assert fault.unpublished > 0


def command_of(rig: Rig, number: int) -> AbstractContextManager[HaltingGrow]:
    """Return the command that makes *number* partitions."""
    settings = {"STOPLOG_KAFKA": rig.cluster.bootstrap, "STOPLOG_TOPICS": str(rig.cluster.topics)}
    return halting_grow(number, environment(rig.system.folder, **settings), rig.system.folder / "grow.log")
