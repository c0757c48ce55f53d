"""Lock a worker's directory: two workers with one instance id on one machine would share their tables."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO, Final

from stoplog.errors import SettingsError

_WAIT_S: Final = 5.0
"""Seconds to wait for the lock: the worker before may still be stopping."""
_RETRY_S: Final = 0.05


def lock_instance(folder: Path) -> IO[str]:
    """Create *folder* if necessary and lock it, until the process ends or the returned file is closed.

    Raises:
        SettingsError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("a+")
    give_up_at = time.monotonic() + _WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                file.seek(0)
                holder = file.read() or "?"
                file.close()
                raise SettingsError(
                    f"a worker (process {holder}) already uses {folder}: stop it, or give each worker its "
                    f"own STOPLOG_INSTANCE_ID"
                ) from None
        time.sleep(_RETRY_S)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
