"""Files that are read again while the gateway runs, so that new content counts without a restart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stoplog.errors import StoplogError

log: Final = logging.getLogger(__name__)

POLL_S: Final = 1.0
"""Seconds between two reads. New content counts after two equal reads, so within 3 s."""

KINDS: Final = ("tokens", "tls")
"""Kinds of watched files: values of the label ``what``."""

MAX_BYTES: Final = 2 << 20
"""Bytes that are read of each file."""

Content = tuple[bytes | str, ...]
"""The content of each file; a text states why a file cannot be read."""


class WatchedFiles:
    """Files whose content belongs together, such as a certificate and its key.

    Args:
        what: One of :data:`KINDS`.
        paths: The files.
        load: Puts the current content in force. It reads the files itself, and it raises a
            :class:`StoplogError` and keeps what was in force if it cannot use them.

    Raises:
        StoplogError: The files cannot be used at the start.
    """

    def __init__(self, what: str, paths: Sequence[Path], load: Callable[[], None]) -> None:
        self.what = what
        self.loaded = 0
        self.failed = 0
        self.failing = False
        """Whether the files cannot be used now, so that older content stays in force."""
        self._paths = paths
        self._load = load
        # Read before they are loaded: a change in between is then noticed.
        self._settled = self._last = self.read()
        load()

    def read(self) -> Content:
        """Return the content of the files."""
        return tuple(_content_of(path) for path in self._paths)

    def update(self, content: Content) -> None:
        """Handle that the files were read.

        Content counts once it was read twice. A file that someone is writing, or a certificate whose key
        comes next, is not used half way.
        """
        settled, self._last = content == self._last, content
        if not settled or content == self._settled:
            return
        self._settled = content
        try:
            self._load()
        except StoplogError as exc:
            self.failed += 1
            self.failing = True
            log.error("%s: changed files cannot be used, so the old ones stay in force: %s", self.what, exc)
        else:
            self.loaded += 1
            self.failing = False
            log.info("%s: changed files are in force", self.what)


class FileWatcher(Collector):
    """Reads all watched files every second."""

    def __init__(self) -> None:
        self._watched: list[WatchedFiles] = []

    def add(self, files: WatchedFiles) -> None:
        """Watch *files*, too."""
        self._watched.append(files)

    async def run(self) -> None:
        """Watch until the task is cancelled."""
        while self._watched:
            await asyncio.sleep(POLL_S)
            for files in self._watched:
                try:
                    # A slow file system must not delay checks.
                    files.update(await asyncio.to_thread(files.read))
                except Exception:
                    log.exception("bug while reading the files of %s again", files.what)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, for a scrape."""
        failing = GaugeMetricFamily(
            "stoplog_files_stale",
            "1 while changed files cannot be used",
            labels=["what"],
        )
        reloads = CounterMetricFamily(
            "stoplog_file_reloads", "Times that changed files were read again", labels=["what", "result"]
        )
        watched = {files.what: files for files in self._watched}
        for what in KINDS:
            files = watched.get(what)
            failing.add_metric([what], files is not None and files.failing)
            reloads.add_metric([what, "loaded"], files.loaded if files else 0)
            reloads.add_metric([what, "failed"], files.failed if files else 0)
        yield failing
        yield reloads


def _content_of(path: Path) -> bytes | str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError as exc:
        return str(exc)
