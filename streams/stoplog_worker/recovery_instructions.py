"""Instructions for operators after topics were deleted. Error messages end with them."""

from __future__ import annotations

from typing import Final

REBUILD_FROM_LOG: Final = (
    "stop all workers, delete their tables and the topics of the changelogs, run `stoplog topics create` and "
    "start the workers again. They count the checks in the log again and take the limits from limit-updates"
)
"""For a deleted changelog, and for a ``checks`` topic of which only the beginning is missing."""

START_EMPTY: Final = (
    "stop all workers, delete their tables and the topics of the changelogs and `checks`, run `stoplog "
    "topics create`, start the workers and set the limits again. No check is counted then"
)
"""For a deleted ``limit-updates``: versions start again, and ``checks`` still holds the higher ones."""
