"""A worker's folder is its own: two workers with one instance id on one machine would share their tables."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO, Final

from stoplog.errors import SettingsError

_PATIENCE_S: Final = 5.0
"""A worker that has been told to stop may still be at it when its successor starts."""


def lock_instance(folder: Path) -> IO[str]:
    """Take *folder*, made if it is not there, until the process ends or the file returned is closed.

    Raises:
        SettingsError: a live process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("a+")
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > give_up:
                file.seek(0)
                holder = file.read() or "?"
                file.close()
                raise SettingsError(
                    f"a worker (process {holder}) already uses {folder}: stop it, or give each worker an "
                    f"STOPLOG_INSTANCE_ID of its own"
                ) from None
        time.sleep(0.05)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
