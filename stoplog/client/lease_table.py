"""Clients with leases, as a table: one row per client, one column per field. Pure: time is passed in.

A gateway may have 100,000 leases. In Python, an object of 30 fields takes a kilobyte, because each number is
an object, too. In columns of machine numbers, a lease takes a third of that.
:mod:`stoplog.client.lease_cache` states the rules.
"""

from __future__ import annotations

import sys
from array import array
from typing import Final, NamedTuple

from stoplog.client.demand import Key, Rate
from stoplog.client.update_proofs import PartitionProof
from stoplog.wire.checks import Check
from stoplog.wire.holds import Ask, Grant
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
"""or one part in this many of its time,"""

LOW_TIME_S: Final = 1.0
"""but at most so many seconds: each renewal takes a record."""

MAX_ENTRIES: Final = 100_000
"""Clients with leases, at most. Each takes about 0.3 kB, with its id."""

_FIRST_ROWS: Final = 16

_NO_PROOF: Final = PartitionProof(-1)


class EndedLease(NamedTuple):
    """A lease that was settled and may still be open in the log.

    Attributes:
        number: Number of the ask that brought it.
        used: Permits that its last settlement reports.
        gone_at: When it has surely ended in the log, in seconds.
    """

    number: int
    used: int
    gone_at: float


class SentAsk(NamedTuple):
    """An ask that a record contains, and what that record reports.

    Attributes:
        partition: Partition of the record.
        key: The client.
        ask: The ask.
        position: Index of its check in the batch.
        lease: Number of the lease that the record settles in part; 0 if there was none.
        used: The permits of it that were used so far: a reply confirms that all of them were reported. A
            later ask may report the same permits again before that reply.
        ended: The earlier leases that the record settles.
    """

    partition: int
    key: Key
    ask: Ask
    position: int
    lease: int
    used: int
    ended: tuple[EndedLease, ...]


class LeaseTable:
    """The clients that have a lease or may get one.

    A number that does not apply is 0. Times and spans are in seconds.

    Attributes:
        key: The client, with or without a resource.
        plan: The plan of its checks.
        partition: Its partition of ``checks``.
        mark: What its marked check is to carry; 0 if no check is marked.
        checks: The rate that was last known: checks per second,
        units: their cost per second,
        rated_at: and when it was measured.
        ttl_s: How long the last lease lasts.
        retry_at: No ask before this time.
        refusals: Asks in a row without a grant.
        unanswered: 1 if the last ask got no reply, else 0.
        not_generous: 1 if the log has refused a lease of few permits, else 0.
        look_at: When :meth:`LeaseCache.take_settlements` looks at the client.
        ended_number: Number of the last lease that was settled and may still be open in the log,
        ended_used: the permits that its last settlement reports,
        ended_gone_at: and when it has surely ended in the log.

        number: Number of the ask that brought the lease in use; 0 without a lease.
        proof: The state of the updates to which the lease refers.
        since: When it was accepted.
        until: When it ends here.
        renew_at: It is renewed at this time,
        low: or when so many permits are left.
        size: Permits granted.
        left: Permits left.
        reported: Permits of which a reply has confirmed that they were reported as used.
        beyond: What the checks answered cost beyond 1 each.
        limit: The limit that the decision with the grant shows,
        remaining: what it leaves beside the lease,
        reset_at: when it is unused again,
        policy_version: and the policy that decided.
    """

    __slots__ = (
        "_free",
        "_lease_numbers",
        "_numbers",
        "_older",
        "beyond",
        "checks",
        "ended_gone_at",
        "ended_number",
        "ended_used",
        "key",
        "left",
        "limit",
        "look_at",
        "low",
        "mark",
        "not_generous",
        "number",
        "partition",
        "plan",
        "policy_version",
        "proof",
        "rated_at",
        "refusals",
        "remaining",
        "renew_at",
        "reported",
        "reset_at",
        "retry_at",
        "since",
        "size",
        "ttl_s",
        "unanswered",
        "units",
        "until",
    )

    def __init__(self) -> None:
        self.key: list[Key] = []
        self.plan: list[str] = []
        self.proof: list[PartitionProof] = []
        self.partition, self.mark = array("i"), array("b")
        self.refusals, self.unanswered, self.not_generous = array("b"), array("b"), array("b")
        self.checks, self.units, self.rated_at = array("f"), array("f"), array("d")
        self.ttl_s, self.retry_at, self.look_at = array("d"), array("d"), array("d")

        self.ended_number, self.ended_used, self.ended_gone_at = array("q"), array("i"), array("d")
        self._older: dict[int, tuple[EndedLease, ...]] = {}
        """Ended leases before the last one, by row. Few clients have them."""

        self.number = array("q")
        self.since, self.until, self.renew_at = array("d"), array("d"), array("d")
        self.low, self.size, self.left = array("i"), array("i"), array("i")
        self.reported, self.beyond = array("i"), array("i")
        self.limit, self.remaining, self.reset_at = array("q"), array("q"), array("d")
        self.policy_version = array("q")
        self._lease_numbers: tuple[array[int] | array[float], ...] = (
            *(self.number, self.since, self.until, self.renew_at),
            *(self.low, self.size, self.left, self.reported, self.beyond),
            *(self.limit, self.remaining, self.reset_at, self.policy_version),
        )
        self._numbers: tuple[array[int] | array[float], ...] = (
            *(self.partition, self.mark, self.refusals, self.unanswered, self.not_generous),
            *(self.checks, self.units, self.rated_at, self.ttl_s, self.retry_at, self.look_at),
            *(self.ended_number, self.ended_used, self.ended_gone_at, *self._lease_numbers),
        )
        self._free: list[int] = []
        """Rows without a client."""

    def add(self, key: Key, plan: str, partition: int) -> int:
        """Return the row of a new client."""
        if not self._free:
            self._grow()
        row = self._free.pop()
        self.key[row], self.partition[row] = key, partition
        self.set_plan(row, plan)
        return row

    def _grow(self) -> None:
        """Double the rows. Columns that grow more often leave gaps in the process's memory."""
        rows = len(self.key)
        more = min(max(rows, _FIRST_ROWS), MAX_ENTRIES - rows)
        self.key += [""] * more
        self.plan += [""] * more
        self.proof += [_NO_PROOF] * more
        for column in self._numbers:
            column.frombytes(bytes(column.itemsize * more))
        self._free += reversed(range(rows, rows + more))

    def remove(self, row: int) -> None:
        """Forget the client of *row*. Another client may get the row."""
        self.key[row] = self.plan[row] = ""
        self.proof[row] = _NO_PROOF
        self._older.pop(row, None)
        for column in self._numbers:
            column[row] = 0
        self._free.append(row)

    def set_plan(self, row: int, plan: str) -> None:
        """Set the plan of the client of *row*."""
        self.plan[row] = sys.intern(plan)  # few plans, and many clients

    def set_rate(self, row: int, rate: Rate, now: float) -> None:
        """Set the rate of the client of *row*, which was measured *now*."""
        (self.checks[row], self.units[row]), self.rated_at[row] = rate, now

    def forget_refusals(self, row: int) -> None:
        """Let the client of *row* ask at once: its limits may have changed since the log refused a lease."""
        if self.refusals[row] or self.not_generous[row]:
            self.refusals[row] = self.not_generous[row] = 0
            self.retry_at[row] = 0.0

    # --- the lease in use -----------------------------------------------------------------------

    def accept(
        self,
        row: int,
        ask: Ask,
        grant: Grant,
        decision: HeldDecision,
        proof: PartitionProof,
        sent_at: float,
        now: float,
    ) -> None:
        """Use the lease that the reply to *ask*, which was sent at *sent_at*, grants the client of *row*."""
        self.number[row], self.proof[row] = ask.number, proof
        self.size[row] = self.left[row] = grant.units
        self.low[row] = grant.units // LOW_PERMITS
        self.since[row] = now
        self.until[row] = until = lease_end(sent_at, grant)
        self.renew_at[row] = until - min(grant.ttl_ms / 1_000 / LOW_TIME, LOW_TIME_S)
        self.limit[row] = decision.limit or 0
        self.remaining[row] = decision.remaining or 0
        self.reset_at[row] = now + decision.reset_after_ms / 1_000
        self.policy_version[row] = decision.policy_version

    def serves(self, row: int, check: Check, now: float) -> bool:
        """Return whether the permits left may answer *check*, which is under the same plan."""
        return check.cost <= self.left[row] and now < self.until[row] and now < self.proof[row].proven_until

    def used(self, row: int) -> int:
        """Return the permits that were used and of which no reply has confirmed the report."""
        return self.size[row] - self.left[row] - self.reported[row]

    def lease_rate(self, row: int, now: float) -> tuple[Rate, float]:
        """Return the rate of the checks that the lease answered, and over how many seconds it is measured."""
        span = max(now - self.since[row], self.ttl_s[row] / MIN_PART)
        units = self.size[row] - self.left[row]
        return Rate((units - self.beyond[row]) / span, units / span), span

    def end(self, row: int) -> EndedLease:
        """End the lease of *row*. Return its last settlement, which is also kept."""
        # The record was appended before its reply arrived.
        gone_at = self.since[row] + self.ttl_s[row] * MARGIN / (MARGIN - 1) + MARGIN_S
        ended = EndedLease(self.number[row], self.used(row), gone_at)
        self._keep_ended(row, ended)
        self.proof[row] = _NO_PROOF
        for column in self._lease_numbers:
            column[row] = 0
        return ended

    # --- ended leases ---------------------------------------------------------------------------

    def ended_leases(self, row: int, now: float) -> tuple[EndedLease, ...]:
        """Return the leases that were settled and may still be open in the log, oldest first."""
        if not self.ended_number[row]:
            return ()
        last = EndedLease(self.ended_number[row], self.ended_used[row], self.ended_gone_at[row])
        return tuple(one for one in (*self._older.get(row, ()), last) if now < one.gone_at)

    def forget_ended(self, row: int, now: float, confirmed: tuple[EndedLease, ...] = ()) -> None:
        """Forget the ended leases whose settlement is *confirmed*, and those that are gone."""
        kept = [one for one in self.ended_leases(row, now) if one not in confirmed]
        self.ended_number[row] = self.ended_used[row] = 0
        self.ended_gone_at[row] = 0
        self._older.pop(row, None)
        for one in kept:
            self._keep_ended(row, one)

    def _keep_ended(self, row: int, ended: EndedLease) -> None:
        if self.ended_number[row]:
            before = EndedLease(self.ended_number[row], self.ended_used[row], self.ended_gone_at[row])
            self._older[row] = (*self._older.get(row, ()), before)
        self.ended_number[row], self.ended_used[row], self.ended_gone_at[row] = ended


def lease_end(sent_at: float, grant: Grant) -> float:
    """Return when a lease ends here whose ask was sent at *sent_at*."""
    return sent_at + grant.ttl_ms / 1_000 * (MARGIN - 1) / MARGIN - MARGIN_S
