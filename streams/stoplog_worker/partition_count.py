"""The number of partitions with which this worker works: recorded in the log, else that of topics.yaml."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from stoplog.errors import TopicError, Unavailable
from stoplog.kafka import clients as kafka
from stoplog.kafka.partition_count import (
    PartitionCountReader,
    explain_difference,
    write_partition_count,
)
from stoplog.kafka.topic_admin import verify_topics
from stoplog.lanes import changelogs_of, with_lanes
from stoplog.topics import (
    AUDIT,
    CHECKS,
    UPDATES,
    TopicSpec,
    load_topics,
    required_partitions,
    with_partitions,
)
from stoplog.wire.partition_count import PartitionCount
from stoplog_worker.settings import Settings

_log = logging.getLogger("stoplog.worker")


def verified_specs(
    settings: Settings, admin: kafka.ExplainingAdmin, *, starting: bool
) -> tuple[dict[str, TopicSpec], PartitionCount]:
    """Compare the topics with the number of partitions in force and with topics.yaml.

    Args:
        settings: The worker's settings.
        admin: An admin client.
        starting: Whether a worker starts. It writes the number to ``limit-updates`` if no worker has written
            it before, and looks for ``audit``.

    Returns:
        The topics of topics.yaml, with the number of partitions in force; and that number. ``audit`` is
        missing if a worker cannot use it.

    Raises:
        TopicError: A topic is missing or contradicts the number of partitions.
        Unavailable: No broker answered.
    """
    in_file = load_topics(settings.topics)
    number = in_file[CHECKS].partitions
    recorded = PartitionCountReader(settings.connection).read()
    count = recorded or PartitionCount(number)
    specs = with_partitions(in_file, count.partitions)
    audit = specs.pop(AUDIT)
    every = with_lanes(specs, [settings.lane])
    found = verify_topics(admin, every.values(), recorded=recorded is not None)
    if recorded is None:
        _compare_changelogs(number, {name: found[name] for name in changelogs_of(settings.lane).values()})
        if starting:
            _record(settings, count)
    if starting and _can_audit(admin, audit, recorded=recorded is not None):
        specs[AUDIT] = audit
    copartitioned = {name: found[name] for name, spec in every.items() if spec.copartitioned}
    required = required_partitions(settings.topics, in_file) or count.first
    if (difference := explain_difference(count, copartitioned, required)) is not None:
        _log.warning("%s", difference)
    return specs, count


def _can_audit(admin: kafka.ExplainingAdmin, audit: TopicSpec, *, recorded: bool) -> bool:
    """Return whether the topic of the audit can be used. Decisions do not depend on it."""
    try:
        verify_topics(admin, [audit], recorded=recorded)
    except (TopicError, Unavailable) as exc:
        _log.warning("changes of limits are logged, but not audited, until the workers start again: %s", exc)
        return False
    return True


def _compare_changelogs(number: int, changelogs: Mapping[str, int]) -> None:
    """Refuse the number of topics.yaml if the changelogs were created with another one."""
    for name, partitions in changelogs.items():
        if partitions != number:
            raise TopicError(
                f"topic {name} has {partitions} partitions, but topics.yaml requires {number}, and "
                f"{UPDATES} has no record of the number with which the log began: set partitions: to that "
                f"number in topics.yaml. The worker then records it"
            )


def _record(settings: Settings, count: PartitionCount) -> None:
    try:
        write_partition_count(settings.connection, count)
    except PermissionError as exc:
        _log.warning(
            "the number of partitions (%s) is not recorded, because this worker may not write to %s (%s): "
            "run `stoplog topics create` with the credentials of an administrator",
            count.partitions,
            UPDATES,
            exc,
        )
    else:
        _log.info("recorded in %s that clients are hashed over %s partitions", UPDATES, count.partitions)
