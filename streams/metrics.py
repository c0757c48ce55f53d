"""What a worker counts, and where it is read: ``/metrics`` on loopback unless told otherwise.

=============================================  =========  ====================================================
name                                           labels     meaning
=============================================  =========  ====================================================
``sluice_worker_records_total``                           records of ``checks`` read
``sluice_worker_checks_total``                 result     checks decided: allowed, rejected, unfit, replayed;
                                                          cached: denied by gateways without asking
``sluice_worker_updates_total``                result     limit updates that came by: applied, repeated
``sluice_worker_reply_failures_total``                    replies that could not be sent
``sluice_worker_dead_letters_total``           topic      records set aside, by the topic they came from
``sluice_worker_record_lag``                   partition  records of ``checks`` not yet judged
``sluice_worker_flush_entries``                           entries written in one flush of one partition
``sluice_worker_flush_seconds``                           seconds from the first produce of a flush to its end
``sluice_worker_flush_failures_total``                    flushes not acknowledged in time (done again)
``sluice_worker_restored_records_total``                  changelog records read
``sluice_worker_copied_entries_total``                    entries taken over from the default lane
``sluice_worker_swept_clients_total``                     states of clients long gone, removed from the disk
``sluice_worker_gaps_mended_total``                       foreign records found in an owned changelog
``sluice_worker_clock_jumps_total``            direction  a broker's clock found set back, or ahead
``sluice_worker_lease_lapses_total``                      times the group lease ran out under owned partitions
``sluice_worker_partitions``                   state      partitions running, restoring, standby
``sluice_worker_cached_clients``                          clients' states in memory
``process_*``                                             CPU, memory, open files, start of the process
=============================================  =========  ====================================================

No label takes a client id. A counter that alerts somebody has its labels from the start: Prometheus sees no
increase in what appears with its first event.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from streams.contract.topics import CHECKS, UPDATES

RESULTS: Final = ("allowed", "rejected", "unfit", "replayed")
"""What becomes of a check that is judged."""


class Metrics:
    """One worker's metrics, in a registry of their own."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self.records = Counter("sluice_worker_records", "Records of checks read.", registry=r)
        self.checks = Counter("sluice_worker_checks", "Checks decided.", ["result"], registry=r)
        self.updates = Counter("sluice_worker_updates", "Limit updates that came by.", ["result"], registry=r)
        self.reply_failures = Counter("sluice_worker_reply_failures", "Replies not sent.", registry=r)
        self.dead_letters = Counter("sluice_worker_dead_letters", "Records set aside.", ["topic"], registry=r)
        self.lag = Gauge("sluice_worker_record_lag", "Records not yet judged.", ["partition"], registry=r)
        self.flush_entries = Histogram(
            "sluice_worker_flush_entries",
            "Entries in one flush of one partition.",
            buckets=(1, 10, 100, 1_000, 10_000, 100_000),
            registry=r,
        )
        self.flush_seconds = Histogram(
            "sluice_worker_flush_seconds",
            "Seconds one flush of one partition took.",
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            registry=r,
        )
        self.flush_failures = Counter(
            "sluice_worker_flush_failures", "Flushes not acknowledged in time.", registry=r
        )
        self.restored = Counter("sluice_worker_restored_records", "Changelog records read.", registry=r)
        self.copied = Counter(
            "sluice_worker_copied_entries", "Entries taken over from the default lane.", registry=r
        )
        self.swept = Counter(
            "sluice_worker_swept_clients", "States of clients long gone, removed.", registry=r
        )
        self.gaps_mended = Counter(
            "sluice_worker_gaps_mended", "Foreign records found in an owned changelog.", registry=r
        )
        self.clock_jumps = Counter(
            "sluice_worker_clock_jumps",
            "A broker's clock found set back, or ahead.",
            ["direction"],
            registry=r,
        )
        self.lapses = Counter("sluice_worker_lease_lapses", "Times the group lease ran out.", registry=r)
        self.partitions = Gauge("sluice_worker_partitions", "Partitions by state.", ["state"], registry=r)
        self.cached = Gauge("sluice_worker_cached_clients", "Clients' states in memory.", registry=r)
        ProcessCollector(registry=r)
        for result in (*RESULTS, "cached"):
            self.checks.labels(result)
        for result in ("applied", "repeated"):
            self.updates.labels(result)
        for topic in (CHECKS, UPDATES):
            self.dead_letters.labels(topic)
        for direction in ("back", "ahead"):
            self.clock_jumps.labels(direction)
