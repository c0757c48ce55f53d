"""Relay keys for tests."""

from __future__ import annotations

from stoplog_worker.algorithm.relay_keys import NO_KEYS, parse_relay_keys
from stoplog_worker.algorithm.update_authority import UpdateAuthority
from stoplog_worker.partition.key_agreement import KeyAgreement
from stoplog_worker.partition.live_workers import LiveWorkers

OLD, NEW, OTHER = "old:" + "11" * 32, "new:" + "22" * 32, "other:" + "33" * 32
"""Three keys, as STOPLOG_RELAY_KEYS has them."""

CHECKS_ID, UPDATES_ID = "checks-1", "updates-1"


def unkeyed() -> KeyAgreement:
    """Return the agreement of a worker without keys."""
    return KeyAgreement(NO_KEYS, alone())


def alone() -> LiveWorkers:
    """Return the other workers of one that has heard of none yet."""
    return LiveWorkers("worker-1@host")


def authority(
    *keys: str, topic_id: str = CHECKS_ID, updates_id: str = UPDATES_ID, partition: int = 0
) -> UpdateAuthority:
    """Return the authority of a partition whose workers have *keys*."""
    return UpdateAuthority(parse_relay_keys(",".join(keys)), topic_id, updates_id, partition)
