"""Enable holds in one partition, once every live worker of all lanes can read them.

Workers of older releases cannot read states with holds, or records about them. So the partition's owner
appends the update :data:`stoplog.wire.limit_updates.ENABLE_HOLDS` to ``checks`` only after the heartbeats of
all live workers announce holds. From that record on, the partition grants them. It is never taken back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from msgspec import UNSET

from stoplog.wire.checks import POSITION_BITS, encode_update
from stoplog.wire.limit_updates import enabling_update
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.update_authority import UpdateAuthority
from stoplog_worker.partition.live_workers import LiveWorkers

_log = logging.getLogger("stoplog.holds")

_PAUSE_S: Final = 1.0
"""Seconds between two looks at the heartbeats."""

_SENT_S: Final = 10.0
"""Seconds to wait for the record to be read before another one is sent. A second one changes nothing."""

_REST_S: Final = 2.0
"""Seconds without an update after each call of :meth:`HoldsGate.rest`."""


class HoldsGate:
    """The gate of one partition.

    Args:
        partition: The partition's number.
        ledger: Knows whether the log contains the update.
        workers: The other workers.
        send: Produces a value and headers to this partition of ``checks``, and calls back with an error or
            ``None``.
        authority: Signs the update.
        signing_key: Returns the id of the key to sign with; ``None`` if no key can be used now.
    """

    def __init__(
        self,
        partition: int,
        ledger: Ledger,
        workers: LiveWorkers,
        send: Callable[[bytes, list[tuple[str, bytes]], Callable[[Any, Any], None]], None],
        authority: UpdateAuthority,
        signing_key: Callable[[], str | None],
    ) -> None:
        self._partition = partition
        self._ledger = ledger
        self._workers = workers
        self._send = send
        self._authority = authority
        self._signing_key = signing_key
        self._look_at = 0.0
        self._rests_until = 0.0
        self._sending = False
        """Whether an update is on its way to the log."""
        self._waits = False
        """Whether the log says why the gate is closed."""
        self.open = False
        """Whether the partition grants holds, as of the last :meth:`advance`. Any thread may read it."""

    def advance(self, now: float) -> None:
        """Look whether the gate is open, or can be opened. *now* is monotonic seconds."""
        if self.open or now < self._look_at or now < self._rests_until:
            return
        self._look_at = now + _PAUSE_S
        ledger = self._ledger
        if ledger.policies.holds_enabled(ledger.next_offset << POSITION_BITS):
            self.open = True
            _log.info("partition %s grants holds", self._partition)
            return
        others = self._workers.others(now)
        if others is None:
            return
        old = [other.id for other in others if other.holds is UNSET]
        if old:
            if not self._waits:
                self._waits = True
                _log.info(
                    "partition %s will grant holds once these workers of an older release are upgraded: %s",
                    self._partition,
                    ", ".join(sorted(old)),
                )
            return
        update, key_id = enabling_update(), self._signing_key()
        if key_id is not None:
            update = self._authority.sign(update, key_id)
        elif ledger.signed_from >= 0:
            return
        self._look_at = now + _SENT_S
        self._sending = True
        self._send(encode_update(update), [], self._delivered)

    def rest(self, now: float) -> bool:
        """Send nothing for a while; return whether nothing is on its way. *now* is monotonic seconds."""
        self._rests_until = now + _REST_S
        return not self._sending

    def _delivered(self, _error: Any, _message: Any) -> None:
        self._sending = False
        self._look_at = 0.0  # it will be read in a moment, or was lost
