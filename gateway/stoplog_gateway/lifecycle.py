"""Whether a gateway process should receive checks from a load balancer."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum


class Phase(Enum):
    """The phase of a gateway process.

    =========  ==========================================  ==================================
    phase      checks                                      ends
    =========  ==========================================  ==================================
    STARTING   are answered, but may fail open needlessly  when each partition has answered,
                                                           at the latest after STOPLOG_STARTUP_S:
                                                           SERVING; or DRAINING
    SERVING    are answered, degraded or not               when the process has to stop: DRAINING
    DRAINING   are answered, and each response ends its    with the process
               connection
    =========  ==========================================  ==================================
    """

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


class Lifecycle:
    """The phase of this process.

    Args:
        startup_s: Seconds after which a process serves even if the store does not answer.
        clock: Returns monotonic seconds.
    """

    def __init__(self, startup_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._serves_at = clock() + startup_s
        self._phase = Phase.STARTING

    def phase(self, *, answered: bool) -> Phase:
        """Return the phase; *answered* says whether every partition has answered by now."""
        if self._phase is Phase.STARTING and (answered or self._clock() >= self._serves_at):
            self._phase = Phase.SERVING
        return self._phase

    def drain(self) -> None:
        """Tell load balancers to send no more checks."""
        self._phase = Phase.DRAINING
