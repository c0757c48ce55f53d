"""Ranges of a changelog that a command reads, without a broker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import msgspec
import pytest
from stoplog_worker.algorithm.state_codec import MARKER_KEY, Marker, encode_marker
from stoplog_worker.kafka.progress_reader import ProgressReader
from stoplog_worker.restore.merge_changelog import merge_changelog, read_marker
from stoplog_worker.state.store import POLICIES

from stoplog.errors import NewerFormat
from stoplog.topics import CHECKS, POLICIES_CHANGELOG
from stoplog.wire.checks import POSITION_BITS
from tests.support.ledgers import FIRST_MARKER
from tests.support.memory_store import MemoryStore
from tests.support.records import Message

LOG_END = 9


def marker(offset: int) -> Marker:
    return msgspec.structs.replace(FIRST_MARKER, next_offset=offset)


def newer_marker(offset: int) -> bytes:
    """Return the marker of a release whose format is not known here."""
    return b"\x03" + (offset << POSITION_BITS).to_bytes(8) + b"\x91" + offset.to_bytes(1)


class Reader:
    """Has the values of a partition's marker."""

    def __init__(self, *values: bytes) -> None:
        self._values = values

    def offset_range(self, topic: str, _partition: int) -> tuple[int, int]:
        assert topic == CHECKS
        return 0, LOG_END

    def read(self, *_place: Any) -> Iterator[Message]:
        for offset, value in enumerate(self._values):
            yield Message(offset, value, MARKER_KEY)


def both(*values: bytes) -> tuple[Marker | None, Marker | None]:
    """Return the marker that is read, and the one that is stored."""
    reader = cast(ProgressReader, Reader(*values))
    store = MemoryStore()
    store.log_end = lambda: LOG_END
    merge_changelog(reader, POLICIES_CHANGELOG, store, POLICIES, len(values))
    return read_marker(reader, POLICIES_CHANGELOG, 0, 0, len(values)), store.marker()


def test_highest_marker_is_read() -> None:
    assert both() == (None, None)
    assert both(*map(encode_marker, map(marker, (3, 5, 4)))) == (marker(5), marker(5))


@pytest.mark.parametrize("last", [[], [encode_marker(marker(4))]])
def test_marker_of_a_newer_format_is_refused(last: list[bytes]) -> None:
    values = [encode_marker(marker(5)), newer_marker(5), *last]
    with pytest.raises(NewerFormat):
        read_marker(cast(ProgressReader, Reader(*values)), POLICIES_CHANGELOG, 0, 0, len(values))
    store = MemoryStore()
    with pytest.raises(NewerFormat):
        merge_changelog(
            cast(ProgressReader, Reader(*values)), POLICIES_CHANGELOG, store, POLICIES, len(values)
        )


def test_marker_of_a_newer_format_that_is_overridden_or_ahead_of_the_log_is_skipped() -> None:
    values = newer_marker(5), encode_marker(marker(6)), newer_marker(LOG_END + 1)
    assert both(*values) == (marker(6), marker(6))
