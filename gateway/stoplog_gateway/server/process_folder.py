"""The folder in which the processes of a gateway share metrics and status while they run: in STOPLOG_HOME."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

from stoplog.errors import SettingsError

_PLACE: Final = "gateways"
_LOCK: Final = "lock"


@contextmanager
def process_folder(home: Path) -> Iterator[Path]:
    """Create an empty folder in *home*, and remove it at the end of the block.

    Folders that a killed gateway left are removed as well. A gateway holds a lock on a file in its folder;
    its processes inherit that.

    Raises:
        SettingsError: The folder cannot be created.
    """
    place = (home / _PLACE).absolute()
    try:
        place.mkdir(parents=True, exist_ok=True)
        for folder in place.iterdir():
            if not _in_use(folder):
                shutil.rmtree(folder, ignore_errors=True)
        folder = Path(mkdtemp(dir=place))
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as exc:
        raise SettingsError(
            f"cannot create a folder for metrics in {place} ({exc}): set STOPLOG_HOME to a writable one"
        ) from exc
    try:
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another gateway uses it
            place.rmdir()


def _in_use(folder: Path) -> bool:
    # One without a lock has lost it, or gets it in this moment. Its processes create their files again.
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
