"""Keep what Stoplog writes to disk private to its user: folders 0700, files 0600."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
"""The permissions of the group and of all others."""


def write_private_files() -> None:
    """Have this process, and the children that it starts from now on, create private files and folders."""
    os.umask(_OTHERS)


def make_private(folder: Path, *contents: str) -> str | None:
    """Take the permissions of other users from *folder* and its *contents*; return what to tell the operator.

    Earlier releases created data folders with the permissions of the user's umask.

    Args:
        folder: The data folder. One with a sticky bit, such as ``/tmp``, is shared on purpose and kept.
        contents: Names in *folder*, which may not exist. Of folders, everything below them is made private.

    Returns:
        A sentence for the log, or ``None`` if everything was private.
    """
    changed, problem = 0, None
    for path in _tree(folder, contents):
        try:
            changed += _make_one_private(path)
        except OSError as exc:
            problem = problem or exc
    if problem is not None:
        return (
            f"other users may be able to read {problem.filename} ({problem.strerror}): make its owner the "
            f"user that runs Stoplog, and run `chmod -R go= {folder}`"
        )
    if not changed:
        return None
    return f"{folder} was open to other users ({changed} of its files and folders): it is private from now on"


def _make_one_private(path: Path) -> bool:
    """Return whether *path* was not private before."""
    try:
        mode = path.lstat().st_mode
        if not mode & _OTHERS or mode & stat.S_ISVTX:
            return False
        path.chmod(stat.S_IMODE(mode) & ~_OTHERS)
    except FileNotFoundError:  # another process has just removed it
        return False
    return True


def _tree(folder: Path, contents: tuple[str, ...]) -> Iterator[Path]:
    """Return *folder*, its *contents* and everything below them, without symbolic links."""
    yield folder
    for path in (folder / name for name in contents):
        if path.is_symlink() or not path.exists():
            continue
        yield path
        for root, folders, files in os.walk(path):
            for name in (*folders, *files):
                if not (found := Path(root, name)).is_symlink():
                    yield found
