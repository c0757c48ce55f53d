"""What an operator does when topics are gone: said by whoever finds out."""

from __future__ import annotations

from typing import Final

REBUILD_FROM_LOG: Final = (
    "stop all workers, delete their tables and the topics of the changelogs, run `stoplog topics create` and "
    "start them again: counters are recomputed from the log, limits taken from limit-updates"
)

START_EMPTY: Final = (
    "stop all workers, delete their tables and the topics of the changelogs and `checks`, run `stoplog topics "
    "create`, start the workers and set the limits again: nothing has been counted yet then"
)
"""Where the versions of limit updates begin again: in `checks` are those of old."""
