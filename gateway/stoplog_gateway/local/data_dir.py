"""The data folder (``STOPLOG_HOME``), which one `stoplog up` at a time may use."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

from stoplog.errors import StoplogError

_STOP_S: Final = 10.0
_POLL_S: Final = 0.05
_SAME_S: Final = 2.0
"""Start times are computed from the boot time, and clock adjustments move that by up to a second or two."""


class DataDirInUse(StoplogError):
    """Another `stoplog up` runs on this folder."""


class DataDir:
    """A data folder, locked until :meth:`release` or until this process ends.

    Args:
        folder: The folder; created if it does not exist.
        url: URL of the gateway. A second `stoplog up` on this folder shows it in its error.

    Raises:
        DataDirInUse: another process has locked the folder.
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
            raise DataDirInUse(
                f"stoplog is already running on {self.folder} (process {holder.get('pid', '?')}, "
                f"{holder.get('url', '?')}): use or stop that one, or set STOPLOG_HOME to another folder"
            ) from None

    def stop_leftovers(self) -> int:
        """Stop the processes that a killed `stoplog up` left running; return how many they were.

        A process is recognized by its id and its start time, because another process may have got its id.
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
        """Record the child processes, in the order in which they must be stopped."""
        children = []
        for pid in pids:
            if pid is not None:
                with suppress(psutil.NoSuchProcess):  # it has just ended
                    children.append((pid, psutil.Process(pid).create_time()))
        self._file.seek(0)
        self._file.truncate()
        json.dump({"pid": psutil.Process().pid, "url": self._url, "children": children}, self._file)
        self._file.flush()

    def release(self) -> None:
        """Unlock the folder; all child processes must have ended."""
        self._file.truncate(0)
        self._file.close()

    def _load(self) -> dict[str, Any]:
        self._file.seek(0)
        try:
            return dict(json.loads(self._file.read() or "{}"))
        except ValueError:  # a crash left the file incomplete
            return {}


def _stop(process: psutil.Process) -> None:
    process.terminate()
    deadline = time.monotonic() + _STOP_S
    # A container's init may not collect the exit status of an orphan, so a zombie counts as ended.
    while process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(_POLL_S)
