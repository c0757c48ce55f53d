"""Decide which relayed updates of ``checks`` may change limits. Pure: it uses the keys, no clock and no I/O.

Every producer of checks can write to ``checks``, but only a worker may relay an update. A worker with relay
keys signs what it relays. The first signed update of a partition is noted in its marker. From there on, the
partition refuses updates without a signature.

=============  ==============================================================  ==========================
update         accepted                                                        else refused as
=============  ==============================================================  ==========================
not signed     before the first signed update of the partition                 ``unsigned``
not signed     if its version is at most 2**32 above the highest one applied   ``impossible``
signed         if its key is known here                                        ``unknown_key``
signed         if its MAC is right                                             ``forged``
=============  ==============================================================  ==========================

So every worker with the same keys accepts the same updates of the same log.
"""

from __future__ import annotations

import hmac
from typing import Final, NamedTuple

import msgspec

from stoplog.wire.checks import unsigned_body
from stoplog.wire.format import pack
from stoplog.wire.limit_updates import Signature, Update
from stoplog_worker.algorithm.relay_keys import NO_KEYS, RelayKeys

MAX_VERSION_STEP: Final = 2**32
"""Highest step of the version from one unsigned update to the next. It depends on the log alone, so a replay
agrees. Compaction may remove the records between, but no partition has so many."""

UNSIGNED: Final = "unsigned"
IMPOSSIBLE: Final = "impossible"
UNKNOWN_KEY: Final = "unknown_key"
FORGED: Final = "forged"
REFUSALS: Final = (UNSIGNED, IMPOSSIBLE, UNKNOWN_KEY, FORGED)
"""Why an update may be refused: values of a metric's label."""

_LABEL: Final = "stoplog relayed update 1"


class Refusal(NamedTuple):
    """Why an update is refused: one of :data:`REFUSALS`, and a sentence for the dead letter."""

    kind: str
    reason: str


class UpdateAuthority:
    """Signs and verifies the relayed updates of one partition.

    Args:
        keys: The relay keys.
        topic_id: Id of the ``checks`` topic.
        updates_id: Id of the ``limit-updates`` topic.
        partition: The partition of both.
    """

    def __init__(self, keys: RelayKeys, topic_id: str, updates_id: str, partition: int) -> None:
        self._keys = keys
        self._place = topic_id, updates_id, partition

    def sign(self, update: Update, key_id: str) -> Update:
        """Return *update*, signed with the key *key_id*, which must be known.

        The MAC is HMAC-SHA-256 of the msgpack array ``[label, topic id of checks, topic id of limit-updates,
        partition, key id]``, followed by the body of the update without its signature. So the record means
        nothing in another partition, or in a topic that was created again.
        """
        secret = self._keys.secret(key_id)
        assert secret is not None
        return msgspec.structs.replace(update, signature=Signature(key_id, self._mac(secret, key_id, update)))

    def _mac(self, secret: bytes, key_id: str, update: Update) -> bytes:
        return hmac.digest(secret, pack((_LABEL, *self._place, key_id)) + unsigned_body(update), "sha256")

    def refusal(self, update: Update, applied: int, *, signed_before: bool) -> Refusal | None:
        """Return why *update* is refused; ``None`` if it is accepted.

        Args:
            update: The update, as it was read in ``checks``.
            applied: Highest version applied so far.
            signed_before: The partition has accepted a signed update.
        """
        signature = update.signature
        if signature is None:
            if signed_before:
                return Refusal(
                    UNSIGNED, "the update has no signature, but earlier ones of this partition have"
                )
            if update.version > applied + MAX_VERSION_STEP:
                return Refusal(
                    IMPOSSIBLE,
                    f"version {update.version} is more than {MAX_VERSION_STEP:,} above the highest one "
                    f"applied, {applied}",
                )
            return None
        secret = self._keys.secret(signature.key_id)
        if secret is None:
            return Refusal(
                UNKNOWN_KEY,
                f"the update is signed with the relay key {signature.key_id!r}, which is not in "
                f"STOPLOG_RELAY_KEYS",
            )
        if not hmac.compare_digest(self._mac(secret, signature.key_id, update), signature.mac):
            return Refusal(
                FORGED,
                f"the update's MAC under the relay key {signature.key_id!r} is wrong: it is forged, or was "
                f"copied from another partition or topic",
            )
        return None


WITHOUT_KEYS: Final = UpdateAuthority(NO_KEYS, "", "", 0)
"""For a fold whose log has no signed updates. It accepts none, wherever it stands."""
