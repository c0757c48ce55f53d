"""The metrics of a worker, served at ``/metrics``; by default on loopback only.

===========================================  ==========  =================================================
name                                         label       meaning
===========================================  ==========  =================================================
``stoplog_worker_records_total``                         records of ``checks`` consumed
``stoplog_worker_checks_total``              result      checks decided: allowed, rejected, unfit (invalid),
                                                         replayed; cached: denied by a gateway's deny cache
``stoplog_worker_reservations_total``        result      reservations granted; unsettled: not settled before
                                                         their end, counted with the client's next record
``stoplog_worker_lease_permits_total``       result      permits of leases granted; unsettled: not reported
                                                         before the end of their lease, counted with the
                                                         client's next record
``stoplog_worker_updates_total``             result      limit updates found in ``checks``: applied, repeated;
                                                         refused: unsigned, impossible, unknown_key, forged
``stoplog_worker_held_partitions``                       partitions whose updates wait for a relay key that
                                                         all workers have
``stoplog_worker_audit_records_total``       result      records of ``audit``: written, lost
``stoplog_worker_reply_failures_total``                  replies that could not be sent
``stoplog_worker_dead_letters_total``        topic       records copied to the dead letters, by their topic
``stoplog_worker_record_lag``                partition   records of ``checks`` not yet judged
``stoplog_worker_flush_entries``                         entries written in one checkpoint of one partition
``stoplog_worker_flush_seconds``                         duration of one checkpoint of one partition
``stoplog_worker_flush_failures_total``                  checkpoints not acknowledged in time, and repeated
``stoplog_worker_restored_records_total``                changelog records read
``stoplog_worker_copied_entries_total``                  entries that a new lane copied
``stoplog_worker_swept_clients_total``                   expired clients removed from the disk
``stoplog_worker_gaps_mended_total``                     foreign records found in an owned changelog
``stoplog_worker_changelog_noise_total``                 records of changelogs that are no values
``stoplog_worker_clock_jumps_total``         direction   jumps of a broker's clock: back, ahead
``stoplog_worker_lease_lapses_total``                    times that the group lease ran out
``stoplog_worker_partitions``                state       partitions: running, restoring, standby
``stoplog_worker_cached_clients``                        clients' states in memory
``process_*``                                            CPU, memory, open files and start of the process
===========================================  ==========  =================================================

No label contains a client id. A counter with an alert has all its labels from the start: Prometheus sees no
increase in a series that appears with its first event.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from stoplog.topics import CHECKS, UPDATES
from stoplog_worker.algorithm.ledger import GRANTED, UNSETTLED
from stoplog_worker.algorithm.update_authority import REFUSALS

RESULTS: Final = ("allowed", "rejected", "unfit", "replayed")
"""The results of judged checks."""


class Metrics:
    """The metrics of one worker, in their own registry."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self.records = Counter("stoplog_worker_records", "Records of checks consumed.", registry=r)
        self.checks = Counter("stoplog_worker_checks", "Checks decided.", ["result"], registry=r)
        self.reservations = Counter(
            "stoplog_worker_reservations",
            "Reservations granted, and ended unsettled.",
            ["result"],
            registry=r,
        )
        self.lease_permits = Counter(
            "stoplog_worker_lease_permits",
            "Permits of leases granted, and ended unsettled.",
            ["result"],
            registry=r,
        )
        self.updates = Counter(
            "stoplog_worker_updates", "Limit updates found in checks.", ["result"], registry=r
        )
        self.audit = Counter("stoplog_worker_audit_records", "Records of audit.", ["result"], registry=r)
        self.reply_failures = Counter("stoplog_worker_reply_failures", "Replies not sent.", registry=r)
        self.dead_letters = Counter(
            "stoplog_worker_dead_letters", "Records copied to the dead letters.", ["topic"], registry=r
        )
        self.lag = Gauge("stoplog_worker_record_lag", "Records not yet judged.", ["partition"], registry=r)
        self.flush_entries = Histogram(
            "stoplog_worker_flush_entries",
            "Entries written in one checkpoint of one partition.",
            buckets=(1, 10, 100, 1_000, 10_000, 100_000),
            registry=r,
        )
        self.flush_seconds = Histogram(
            "stoplog_worker_flush_seconds",
            "Seconds that one checkpoint of one partition took.",
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            registry=r,
        )
        self.flush_failures = Counter(
            "stoplog_worker_flush_failures", "Checkpoints not acknowledged in time.", registry=r
        )
        self.restored = Counter("stoplog_worker_restored_records", "Changelog records read.", registry=r)
        self.copied = Counter(
            "stoplog_worker_copied_entries", "Entries copied from the default lane.", registry=r
        )
        self.swept = Counter(
            "stoplog_worker_swept_clients", "Expired clients removed from the disk.", registry=r
        )
        self.gaps_mended = Counter(
            "stoplog_worker_gaps_mended", "Records of other workers found in an owned changelog.", registry=r
        )
        self.noise = Counter(
            "stoplog_worker_changelog_noise",
            "Records of changelogs that are no values. They are skipped, and their keys are written again.",
            registry=r,
        )
        self.clock_jumps = Counter(
            "stoplog_worker_clock_jumps",
            "Jumps of a broker's clock.",
            ["direction"],
            registry=r,
        )
        self.lapses = Counter(
            "stoplog_worker_lease_lapses", "Times that the group lease ran out.", registry=r
        )
        self.held = Gauge(
            "stoplog_worker_held_partitions", "Partitions whose updates wait for a relay key.", registry=r
        )
        self.partitions = Gauge("stoplog_worker_partitions", "Partitions by state.", ["state"], registry=r)
        self.cached = Gauge("stoplog_worker_cached_clients", "Clients' states in memory.", registry=r)
        ProcessCollector(registry=r)
        for result in (*RESULTS, "cached"):
            self.checks.labels(result)
        for result in (GRANTED, UNSETTLED):
            self.reservations.labels(result)
            self.lease_permits.labels(result)
        for result in ("applied", "repeated", *REFUSALS):
            self.updates.labels(result)
        for result in ("written", "lost"):
            self.audit.labels(result)
        for topic in (CHECKS, UPDATES):
            self.dead_letters.labels(topic)
        for direction in ("back", "ahead"):
            self.clock_jumps.labels(direction)
