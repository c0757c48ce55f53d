"""What a limiter does while the number of partitions grows: it publishes nothing, and counts the calls.

It outlives the engines: an engine pauses, and the next one continues with the new number. So the heartbeats
of both report the same step.
"""

from __future__ import annotations

from stoplog.client.metrics import Metrics
from stoplog.wire.heartbeats import GrowthState
from stoplog.wire.partition_count import GrowthStep


class GrowthPause:
    """The pause of one limiter.

    Args:
        metrics: Counts the calls that are not published.

    Attributes:
        step: The last step that is known.
        paused: Whether everything that was published is stored, and nothing else will be published.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._before = 0
        self.step = GrowthStep()
        self.paused = False

    def begin(self, step: GrowthStep) -> None:
        """Note that *step* is under way: all checks are answered without the store from now on.

        A further attempt of a step that was interrupted continues the same pause.
        """
        if not self.step.under_way:
            self._before = self._metrics.uncounted_growing
        self.step = step

    def end(self, step: GrowthStep) -> None:
        """Note that *step* is done, and that checks are published again."""
        self.step, self.paused = step, False

    def state(self) -> GrowthState:
        """Return the state to announce in heartbeats."""
        checks = self._metrics.uncounted_growing - self._before if self.step.epoch else 0
        return GrowthState(self.step.epoch, self.paused, checks=checks)
