"""Merge the metrics of several processes on one port into one page.

Each process counts in memory, as a single process does. Once a second, and for each scrape, it writes its
values to its own files in a shared folder (the multiprocess format of prometheus-client). The process that
receives the scrape merges all files.

Files that somebody removes are written again within a second, with the counts of the processes that run.

A restarted process continues the counts in the files of its slot. Therefore no counter falls, and the number
of files is bounded by the number of slots. :func:`remove_gauges` removes the gauges of a process that ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from stoplog.client.metrics import GAUGES

WRITE_INTERVAL_S: Final = 1.0
"""Seconds between two writes: the age of other processes' values, and the counts that a SIGKILL can lose."""


class SharedMetrics(Collector):
    """The merged metrics of all processes; ``registry`` exposes them until :meth:`close`.

    Args:
        own: Metrics of this process.
        folder: Shared by all processes, and empty when the first one starts.
        slot: Number of this process. No two running processes have the same number.
    """

    def __init__(self, own: Collector, folder: Path, slot: int) -> None:
        self._own = own
        self._folder = folder
        self._slot = slot
        self._files: dict[str, MmapedDict] = {}
        self._inherited: dict[str, float] = {}
        """Counts of earlier processes in this slot, by key."""
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def write(self) -> None:
        """Write the values of this process to its files. Takes about 0.5 ms."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for family in self._own.collect():
            if family.type == "gauge":
                file = self._file(f"gauge_{GAUGES[family.name]}", inherit=False)
            else:
                file = self._file(family.type, inherit=True)
            for name, labels, value in _increments(family):
                key = mmap_key(family.name, name, list(labels), list(labels.values()), family.documentation)
                file.write_value(key, self._inherited.get(key, 0.0) + value, 0.0)

    def close(self) -> None:
        """Write the last values, and close the files."""
        self.write()
        for file in self._files.values():
            file.close()

    def collect(self) -> Iterable[Metric]:
        """Return the metrics for a scrape: of this process now, of the others as of their last write."""
        self.write()
        merged: Iterable[Metric] = MultiProcessCollector(None, str(self._folder)).collect()
        return merged

    def _file(self, kind: str, *, inherit: bool) -> MmapedDict:
        """Return the file for metrics of *kind*; *inherit* continues the values that it already contains."""
        file = self._files.get(kind)
        path = self._folder / f"{kind}_{self._slot}.db"
        exists = path.exists()
        if file is not None and not exists:  # somebody has removed it
            file.close()
            file = None
        if file is None:
            if exists:
                file = MmapedDict(str(path))
            else:
                # Other processes read the folder at any time, so a file gets its name once it has a header.
                new = path.with_suffix(".new")
                file = MmapedDict(str(new))
                new.rename(path)
            if inherit and exists:
                self._inherited |= {key: value for key, value, _ in file.read_all_values()}
            self._files[kind] = file
        return file


def remove_gauges(folder: Path, slot: int) -> None:
    """Remove the gauges of *slot*, whose process has ended. Its counts stay."""
    mark_process_dead(slot, str(folder))


def _increments(family: Metric) -> Iterable[tuple[str, dict[str, str], float]]:
    """Yield the samples of *family* as the files store them: each histogram bucket without the lower ones."""
    below = 0.0
    for sample in family.samples:
        if family.type == "histogram" and "le" in sample.labels:
            yield sample.name, sample.labels, sample.value - below
            below = 0.0 if sample.labels["le"] == "+Inf" else sample.value
        elif not (family.type == "histogram" and sample.name.endswith("_count")):
            yield sample.name, sample.labels, sample.value  # the reader computes _count from the buckets
