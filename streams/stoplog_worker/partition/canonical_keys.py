"""Give each update one spelling of its key in ``limit-updates``.

Compaction keeps the last record of each key, and compares keys as bytes. An operator may write
``["client", "alice", ""]``, and a gateway ``["client","alice",""]``. If both remained, the one that was
written first could outlive the other: after a deletion, compaction would leave the old limit.

So the owner of a partition repeats an update with another spelling under the canonical key, once it is
applied. The copy has the policy in force and the version that it copies. Then the owner overwrites the record
with the other spelling.

Someone may change the limit while the copy is on its way. The copy then stands behind the newer change, and
compaction would keep the copy. The owner finds out when it reads its copy, and copies the newer policy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from confluent_kafka import KafkaError

from stoplog.topics import UPDATES
from stoplog.wire.audit import ChangeSource, source_headers
from stoplog.wire.limit_updates import (
    MOVED,
    Update,
    copy_header,
    encode_update_key,
    encode_update_value,
    order_header,
)
from stoplog_worker.algorithm.ledger import Ledger

_log = logging.getLogger("stoplog.relay")

Headers = list[tuple[str, bytes]]


class QueuedUpdate(NamedTuple):
    """An update that the relay has read.

    Attributes:
        update: The update.
        source: The author of the change.
        other_key: Its key as it was written, if that is not the canonical spelling.
        copy_of: The version that the record repeats; -1 if it repeats none.
    """

    update: Update
    source: ChangeSource
    other_key: bytes | None = None
    copy_of: int = -1


class KeyCanonicalizer:
    """Writes to one partition of ``limit-updates``.

    Args:
        ledger: Knows the policies in force.
        publish: Produces a key, a value and headers, and calls back with an error or ``None``.
    """

    def __init__(
        self,
        ledger: Ledger,
        publish: Callable[[bytes, bytes | None, Headers, Callable[[Any, Any], None]], None],
    ) -> None:
        self._ledger = ledger
        self._publish = publish

    def applied_version(self, update: Update) -> int:
        """Return the version of the last change under the key of *update*; -1 if there was none."""
        change = self._ledger.policies.last_change(update.key)
        return -1 if change is None else change.version

    def rewrite(self, queued: QueuedUpdate, done: Callable[[bool], None]) -> bool:
        """Write the policy in force under the canonical key of *queued*, which is applied.

        Args:
            queued: The update.
            done: Called once all records are acknowledged or refused, with whether to go on. If not, a record
                was lost on its way, and the caller tries again.

        Returns:
            Whether there is anything to write; else *done* is not called.
        """
        update = queued.update
        change = self._ledger.policies.last_change(update.key)
        if change is None or update.kind == "reset":
            return False
        headers = [copy_header(change.version)]
        if change.version == update.version:
            headers += source_headers(queued.source)
        if change.order >= 0:
            headers.append(order_header(change.order))
        records = [(encode_update_key(update.key), encode_update_value(change.policy), headers)]
        if queued.other_key is not None and update.policy is not None:
            records.append((queued.other_key, MOVED, []))
        errors: list[Any] = []

        def delivered(error: Any, _message: Any) -> None:
            errors.append(error)
            if len(errors) == len(records):
                done(_settled(errors, update))

        for record in records:
            self._publish(*record, delivered)
        return True


def _settled(errors: list[Any], update: Update) -> bool:
    failed = [error for error in errors if error is not None]
    if not failed:
        return True
    denied = isinstance(failed[0], KafkaError) and failed[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
    if denied:
        _log.warning(
            "the update of %s is applied, but its key in %s is not in the canonical spelling (without "
            "blanks), and this worker may not write there: allow workers to write to %s",
            update.key,
            UPDATES,
            UPDATES,
        )
    return denied
