"""Every edge between the phases of a gateway process."""

from __future__ import annotations

from stoplog_gateway.lifecycle import Lifecycle, Phase


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_start_ends_when_every_partition_has_answered() -> None:
    lifecycle = Lifecycle(10, Clock())
    assert lifecycle.phase(answered=False) is Phase.STARTING
    assert lifecycle.phase(answered=True) is Phase.SERVING
    assert lifecycle.phase(answered=False) is Phase.SERVING


def test_start_during_an_outage_ends_after_the_startup_time() -> None:
    clock = Clock()
    lifecycle = Lifecycle(10, clock)
    clock.now += 9.9
    assert lifecycle.phase(answered=False) is Phase.STARTING
    clock.now += 0.1
    assert lifecycle.phase(answered=False) is Phase.SERVING


def test_draining_does_not_end() -> None:
    for answered in (False, True):
        lifecycle = Lifecycle(10, Clock())
        lifecycle.phase(answered=answered)
        lifecycle.drain()
        assert lifecycle.phase(answered=True) is Phase.DRAINING
