"""A lease in use, and a client that has one or may get one. Pure: time is passed in.

:mod:`stoplog.client.lease_cache` states the rules.
"""

from __future__ import annotations

from math import inf
from typing import Final

from stoplog.client.demand import Rate
from stoplog.client.update_proofs import PartitionProof
from stoplog.wire.checks import Check
from stoplog.wire.holds import Ask, Grant, HoldId, Settlement
from stoplog.wire.replies import HeldDecision

MARGIN: Final = 31
"""A lease ends here one part in this many earlier than in the log: clocks may differ in rate by 1 % each."""

MARGIN_S: Final = 0.005
"""It ends so many seconds earlier in addition, because clocks are read in milliseconds."""

MIN_PART: Final = 4
"""The rate during a lease is never measured over less than one part in this many of its time."""

LOW_PERMITS: Final = 4
"""A lease is renewed when one part in this many of its permits is left,"""

LOW_TIME: Final = 3
"""or one part in this many of its time."""


class Lease:
    """A lease in use.

    Attributes:
        id: Its id in the log.
        proof: The state of the updates to which it refers.
        ttl_s: Seconds that it lasts.
        since: When it was accepted, in seconds.
        until: When it ends here.
        gone_at: When it has surely ended in the log.
        low: It is renewed when so many permits are left,
        renew_at: or at this time.
        left: Permits left.
        used: Permits that were used and are not confirmed as reported.
        hits: Checks answered.
        units: Their total cost.
        limit: The limit that the decision with the grant shows,
        remaining: what it leaves beside the lease,
        reset_after_ms: when it is unused again, as of ``since``,
        policy_version: and the policy that decided.
    """

    __slots__ = (
        "gone_at",
        "hits",
        "id",
        "left",
        "limit",
        "low",
        "policy_version",
        "proof",
        "remaining",
        "renew_at",
        "reset_after_ms",
        "since",
        "ttl_s",
        "units",
        "until",
        "used",
    )

    def __init__(
        self,
        id_: HoldId,
        grant: Grant,
        decision: HeldDecision,
        proof: PartitionProof,
        sent_at: float,
        now: float,
    ) -> None:
        self.id = id_
        # The decision itself would take three times the memory.
        self.limit = decision.limit
        self.remaining = decision.remaining or 0
        self.reset_after_ms = decision.reset_after_ms
        self.policy_version = decision.policy_version
        self.proof = proof
        self.ttl_s = grant.ttl_ms / 1_000
        self.since = now
        self.until = sent_at + self.ttl_s * (MARGIN - 1) / MARGIN - MARGIN_S
        # The record was appended before its reply arrived.
        self.gone_at = now + self.ttl_s * MARGIN / (MARGIN - 1) + MARGIN_S
        self.renew_at = self.until - self.ttl_s / LOW_TIME
        self.left = grant.units
        self.low = grant.units // LOW_PERMITS
        self.used = self.hits = self.units = 0

    def serves(self, check: Check, now: float) -> bool:
        """Return whether the permits left may answer *check*, which is under the same plan."""
        return check.cost <= self.left and now < self.until and now < self.proof.proven_until

    def rate(self, now: float) -> tuple[Rate, float]:
        """Return the rate of the checks that it has answered, and the seconds over which it is measured."""
        span = max(now - self.since, self.ttl_s / MIN_PART)
        return Rate(self.hits / span, self.units / span), span


class EndedLease:
    """The last settlement of a lease, and when the lease has surely ended in the log."""

    __slots__ = ("gone_at", "settlement")

    def __init__(self, settlement: Settlement, gone_at: float) -> None:
        self.settlement = settlement
        self.gone_at = gone_at


class SentAsk:
    """An ask that a record contains, and what that record reports.

    Attributes:
        entry: The client.
        ask: The ask.
        index: Index of its check in the batch.
        lease: The lease that the record settles in part; ``None`` if there was none.
        used: The permits of it that the record reports.
        ended: The earlier leases that the record settles.
    """

    __slots__ = ("ask", "ended", "entry", "index", "lease", "used")

    def __init__(
        self,
        entry: LeasedClient,
        ask: Ask,
        index: int,
        lease: Lease | None,
        used: int,
        ended: tuple[EndedLease, ...],
    ) -> None:
        self.entry = entry
        self.ask = ask
        self.index = index
        self.lease = lease
        self.used = used
        self.ended = ended


class LeasedClient:
    """A client, with one resource or none, that has a lease or may get one.

    Attributes:
        client: Id of the client.
        resource: The resource; empty for none.
        plan: The plan of its checks.
        partition: Its partition of ``checks``.
        lease: The lease in use.
        asking: The ask that waits for a reply.
        mark: What its marked check is to carry; 0 if no check is marked.
        ended: Leases that were settled and may still be open in the log.
        rate: The last known rate.
        rated_at: When it was measured, in seconds.
        ttl_s: Seconds that the last lease lasted; 0 before the first.
        retry_at: No ask before this time.
        refusals: Asks in a row without a grant.
        look_at: When :meth:`LeaseCache.take_settlements` looks at the entry; inf if it does not.
    """

    __slots__ = (
        "asking",
        "client",
        "ended",
        "lease",
        "look_at",
        "mark",
        "partition",
        "plan",
        "rate",
        "rated_at",
        "refusals",
        "resource",
        "retry_at",
        "ttl_s",
    )

    def __init__(self, check: Check, partition: int, rate: Rate, now: float) -> None:
        self.client = check.client
        self.resource = check.resource
        self.plan = check.plan
        self.partition = partition
        self.rate = rate
        self.rated_at = now
        self.lease: Lease | None = None
        self.asking: SentAsk | None = None
        self.mark = 0
        self.ended: tuple[EndedLease, ...] = ()
        self.ttl_s = 0.0
        self.retry_at = -inf
        self.refusals = 0
        self.look_at = inf
