"""Several processes' states as one; here the processes are objects."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from stoplog.client.cluster_status import NO_WORKER, OK, Status
from stoplog.client.shared_status import SharedState, State, forget_state, together

NORMAL = Status("normal", 5_000, None, [], 0, 0, OK, None, 4, [])
EARLY = Status("degraded", 7_000, "early", [0, 2], 10, 1, OK, None, 4, [], 1, 1)
LATE = Status("degraded", 9_000, "late", [1, 2], 20, 2, NO_WORKER, "no worker", 4, [], 1, 1)


def test_alone_it_is_as_it_is() -> None:
    assert together(NORMAL, []) == NORMAL
    assert together(LATE, []) == LATE


def test_it_is_degraded_if_one_is_and_since_the_first() -> None:
    assert together(NORMAL, [LATE, EARLY]) == Status(
        "degraded", 7_000, "early", [0, 1, 2], 30, 3, NO_WORKER, "no worker", 4, [], 3, 2
    )


def test_it_is_normal_since_the_last() -> None:
    other = Status("normal", 6_000, None, [], 0, 0, OK, None, 4, [])
    assert together(NORMAL, [other]) == Status("normal", 6_000, None, [], 0, 0, OK, None, 4, [], 2)


def test_each_reads_what_the_others_said_until_they_end(tmp_path: Path) -> None:
    states = [State(NORMAL, {"a": (1, 0)}), State(LATE, {"b": (3, 2)})]
    first, second = (
        SharedState(partial(State, s.status, s.rejected), tmp_path, at) for at, s in enumerate(states, 1)
    )
    assert first.others() == []
    for shared in (first, second):
        shared.flush()
    assert first.others() == states[1:]
    assert second.others() == states[:1]
    forget_state(tmp_path, 2)
    forget_state(tmp_path, 2)
    assert first.others() == []
