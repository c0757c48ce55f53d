"""One page of metrics for several processes, by way of prometheus-client's multiprocess files.

Every process counts as it would alone. Once a second, and when it is scraped, it copies what it has counted
to files of its own in a folder of all; whichever is scraped adds up the files. A process that is started in
the place of a dead one goes on from the dead one's counts, so no sum ever falls, and there are never more
files than places. Gauges of the dead are removed (:func:`forget_gauges`).
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

FLUSH_S: Final = 1.0
"""Between two copies: as old may be what a page says of the other processes, and so much a kill loses."""


class SharedMetrics(Collector):
    """What all processes have counted; ``registry`` shows it until it is closed.

    Args:
        own: What this process counts.
        folder: The same for all processes, and empty when the first starts.
        place: This process's number in it; no two that run have the same.
    """

    def __init__(self, own: Collector, folder: Path, place: int) -> None:
        self._own = own
        self._folder = folder
        self._place = place
        self._files: dict[str, MmapedDict] = {}
        self._before: dict[str, float] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def flush(self) -> None:
        """Copy what this process has counted to its files; 0.5 ms."""
        for family in self._own.collect():
            if family.type == "gauge":
                file = self._file(f"gauge_{GAUGES[family.name]}", goes_on=False)
            else:
                file = self._file(family.type, goes_on=True)
            for name, labels, value in _increments(family):
                key = mmap_key(family.name, name, list(labels), list(labels.values()), family.documentation)
                file.write_value(key, self._before.get(key, 0.0) + value, 0.0)

    def close(self) -> None:
        """Copy the last, and close the files."""
        self.flush()
        for file in self._files.values():
            file.close()

    def collect(self) -> Iterable[Metric]:
        """What a scrape reads: this process as of now, the others as of their last flush."""
        self.flush()
        merged: Iterable[Metric] = MultiProcessCollector(None, str(self._folder)).collect()
        return merged

    def _file(self, kind: str, *, goes_on: bool) -> MmapedDict:
        """The file for metrics of *kind*; *goes_on*: what it holds already is added to."""
        file = self._files.get(kind)
        if file is None:
            path = self._folder / f"{kind}_{self._place}.db"
            if path.exists():
                file = MmapedDict(str(path))
            else:
                # Others may be reading the folder: a file is there once it has its header.
                new = path.with_suffix(".new")
                file = MmapedDict(str(new))
                new.rename(path)
            if goes_on:
                self._before |= {key: value for key, value, _ in file.read_all_values()}
            self._files[kind] = file
        return file


def forget_gauges(folder: Path, place: int) -> None:
    """Remove the gauges of the process at *place*, which has ended; its counts stay."""
    mark_process_dead(place, str(folder))


def _increments(family: Metric) -> Iterable[tuple[str, dict[str, str], float]]:
    """Samples of *family*, each bucket without those below it: as the files keep them."""
    below = 0.0
    for sample in family.samples:
        if family.type == "histogram" and "le" in sample.labels:
            yield sample.name, sample.labels, sample.value - below
            below = 0.0 if sample.labels["le"] == "+Inf" else sample.value
        elif not (family.type == "histogram" and sample.name.endswith("_count")):  # it is summed from buckets
            yield sample.name, sample.labels, sample.value
