"""What a worker counts, and where it is read: ``/metrics`` on loopback unless told otherwise.

=============================================  =========  ====================================================
name                                           labels     meaning
=============================================  =========  ====================================================
``stoplog_worker_records_total``                           records of ``checks`` read
``stoplog_worker_checks_total``                 result     checks decided: allowed, rejected, unfit, replayed;
                                                          cached: denied by gateways without asking
``stoplog_worker_updates_total``                result     limit updates that came by: applied, repeated
``stoplog_worker_reply_failures_total``                    replies that could not be sent
``stoplog_worker_dead_letters_total``           topic      records set aside, by the topic they came from
``stoplog_worker_record_lag``                   partition  records of ``checks`` not yet judged
``stoplog_worker_flush_entries``                           entries written in one flush of one partition
``stoplog_worker_flush_seconds``                           seconds from the first produce of a flush to its end
``stoplog_worker_flush_failures_total``                    flushes not acknowledged in time (done again)
``stoplog_worker_restored_records_total``                  changelog records read
``stoplog_worker_copied_entries_total``                    entries taken over from the default lane
``stoplog_worker_swept_clients_total``                     states of clients long gone, removed from the disk
``stoplog_worker_gaps_mended_total``                       foreign records found in an owned changelog
``stoplog_worker_clock_jumps_total``            direction  a broker's clock found set back, or ahead
``stoplog_worker_lease_lapses_total``                      times the group lease ran out under owned partitions
``stoplog_worker_partitions``                   state      partitions running, restoring, standby
``stoplog_worker_cached_clients``                          clients' states in memory
``process_*``                                             CPU, memory, open files, start of the process
=============================================  =========  ====================================================

No label takes a client id. A counter that alerts somebody has its labels from the start: Prometheus sees no
increase in what appears with its first event.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from stoplog.topics import CHECKS, UPDATES

RESULTS: Final = ("allowed", "rejected", "unfit", "replayed")
"""What becomes of a check that is judged."""


class Metrics:
    """One worker's metrics, in a registry of their own."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self.records = Counter("stoplog_worker_records", "Records of checks read.", registry=r)
        self.checks = Counter("stoplog_worker_checks", "Checks decided.", ["result"], registry=r)
        self.updates = Counter(
            "stoplog_worker_updates", "Limit updates that came by.", ["result"], registry=r
        )
        self.reply_failures = Counter("stoplog_worker_reply_failures", "Replies not sent.", registry=r)
        self.dead_letters = Counter(
            "stoplog_worker_dead_letters", "Records set aside.", ["topic"], registry=r
        )
        self.lag = Gauge("stoplog_worker_record_lag", "Records not yet judged.", ["partition"], registry=r)
        self.flush_entries = Histogram(
            "stoplog_worker_flush_entries",
            "Entries in one flush of one partition.",
            buckets=(1, 10, 100, 1_000, 10_000, 100_000),
            registry=r,
        )
        self.flush_seconds = Histogram(
            "stoplog_worker_flush_seconds",
            "Seconds one flush of one partition took.",
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            registry=r,
        )
        self.flush_failures = Counter(
            "stoplog_worker_flush_failures", "Flushes not acknowledged in time.", registry=r
        )
        self.restored = Counter("stoplog_worker_restored_records", "Changelog records read.", registry=r)
        self.copied = Counter(
            "stoplog_worker_copied_entries", "Entries taken over from the default lane.", registry=r
        )
        self.swept = Counter(
            "stoplog_worker_swept_clients", "States of clients long gone, removed.", registry=r
        )
        self.gaps_mended = Counter(
            "stoplog_worker_gaps_mended", "Foreign records found in an owned changelog.", registry=r
        )
        self.clock_jumps = Counter(
            "stoplog_worker_clock_jumps",
            "A broker's clock found set back, or ahead.",
            ["direction"],
            registry=r,
        )
        self.lapses = Counter("stoplog_worker_lease_lapses", "Times the group lease ran out.", registry=r)
        self.partitions = Gauge("stoplog_worker_partitions", "Partitions by state.", ["state"], registry=r)
        self.cached = Gauge("stoplog_worker_cached_clients", "Clients' states in memory.", registry=r)
        ProcessCollector(registry=r)
        for result in (*RESULTS, "cached"):
            self.checks.labels(result)
        for result in ("applied", "repeated"):
            self.updates.labels(result)
        for topic in (CHECKS, UPDATES):
            self.dead_letters.labels(topic)
        for direction in ("back", "ahead"):
            self.clock_jumps.labels(direction)
