"""Several processes' states in one folder; here the processes are objects."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from stoplog_gateway.server.shared_status import SharedStatus, remove_status

from stoplog.client.cluster_status import NO_WORKER, OK, ProcessState, Status

NORMAL = Status("normal", 5_000, None, [], 0, 0, OK, None, 4, [])
DEGRADED = Status("degraded", 9_000, "late", [1, 2], 20, 2, NO_WORKER, "no worker", 4, [], 1, 1)


def test_others_are_the_states_written_by_running_processes(tmp_path: Path) -> None:
    states = [ProcessState(NORMAL, {"a": (1, 0)}), ProcessState(DEGRADED, {"b": (3, 2)})]
    first, second = (
        SharedStatus(partial(ProcessState, state.status, state.rejected), tmp_path, number)
        for number, state in enumerate(states, 1)
    )
    assert first.others() == []
    for shared in (first, second):
        shared.write()
    assert first.others() == states[1:]
    assert second.others() == states[:1]
    remove_status(tmp_path, 2)
    remove_status(tmp_path, 2)
    assert first.others() == []
