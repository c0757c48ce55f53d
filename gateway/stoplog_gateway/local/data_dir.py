"""The home folder belongs to one `stoplog up` at a time."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import psutil

from stoplog.errors import StoplogError

_STOP_S: Final = 10.0
_POLL_S: Final = 0.05
_SAME_S: Final = 2.0
"""Start times are computed from the boot time, which the clock's adjustments move a little."""


class HomeTaken(StoplogError):
    """Another `stoplog up` runs on this home."""


class Home:
    """Holds *folder* until :meth:`release`, or until this process ends, however it ends.

    Args:
        folder: Made if it is not there.
        url: Where the gateway will be: what a second start is told.

    Raises:
        HomeTaken: another one holds it.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder.resolve()
        self.logs = self.folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self._url = url
        self._file = (self.folder / "up.json").open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._load()
            self._file.close()
            raise HomeTaken(
                f"stoplog is already running on {self.folder} (process {holder.get('pid', '?')}, "
                f"{holder.get('url', '?')}): use or stop that one, or set STOPLOG_HOME to another folder"
            ) from None

    def stop_leftovers(self) -> int:
        """Stop what a `stoplog up` that was killed left running here; returns how many processes.

        A process counts only with its start time: its number may belong to somebody else by now.
        """
        stopped = 0
        for pid, created in self._load().get("children", []):
            try:
                process = psutil.Process(pid)
                if abs(process.create_time() - created) < _SAME_S:
                    stopped += 1
                    _stop(process)
            except psutil.NoSuchProcess:
                continue
        return stopped

    def record(self, pids: Iterable[int | None]) -> None:
        """Note which processes belong to this one, in the order in which they must be stopped."""
        children = []
        for pid in pids:
            if pid is not None and psutil.pid_exists(pid):
                children.append((pid, psutil.Process(pid).create_time()))
        self._file.seek(0)
        self._file.truncate()
        json.dump({"pid": psutil.Process().pid, "url": self._url, "children": children}, self._file)
        self._file.flush()

    def release(self) -> None:
        """Let another one have it; all processes must have been stopped."""
        self._file.truncate(0)
        self._file.close()

    def _load(self) -> dict[str, Any]:
        self._file.seek(0)
        try:
            return dict(json.loads(self._file.read() or "{}"))
        except ValueError:  # cut off by a crash
            return {}


def _stop(process: psutil.Process) -> None:
    process.terminate()
    deadline = time.monotonic() + _STOP_S
    # Nobody may be there to collect the exit status of an orphan: one that has ended counts as gone.
    while process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(_POLL_S)
