"""The systems on which the fault scenarios run, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.faults.cluster import running_cluster
from tests.support.faults.rig import Rig
from tests.support.system import System, eventually


class Rigs:
    """One system for all scenarios, or a new one after a scenario that failed.

    A scenario that fails leaves workers killed and clients blocked. The next one would fail because of that.
    """

    def __init__(self, new_folder: Callable[[], Path]) -> None:
        self._new_folder = new_folder
        self._rig: Rig | None = None
        self._stack = ExitStack()

    @contextmanager
    def lend(self) -> Iterator[Rig]:
        """Return a system in which every worker runs. If the block fails, the system is given up."""
        if self._rig is None:
            self._rig = self._start()
        try:
            yield self._rig
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the system, if there is one."""
        self._rig = None
        self._stack.close()

    def _start(self) -> Rig:
        folder = self._new_folder()
        cluster = self._stack.enter_context(running_cluster(folder))
        # Without a deny cache, every denial has a decision in the log to be compared with.
        settings = {
            "kafka": cluster.bootstrap,
            "topics": cluster.topics,
            "deny_cache": 0,
        }
        system = System(cluster.nodes[0], folder, self._stack.enter_context(ExitStack()), **settings)
        rig = Rig(cluster, system)
        for _ in range(3):
            system.add_worker()
        gateway = system.add_gateway()
        system.wait_ready()
        eventually(
            "every worker has joined",
            lambda: rig.settled(gateway) and all(worker.lines("generation") for worker in system.workers),
            on_failure=system.logs,
        )
        gateway.stop()
        system.gateways.remove(gateway)
        return rig
