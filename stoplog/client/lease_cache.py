"""Allow checks of busy clients without a round trip, by permits that the log has granted in advance.

This module is pure: it uses neither Kafka nor timers. It is the twin of :mod:`stoplog.client.deny_cache`.

A *lease* is a number of permits. The log counts all of them from the grant until the lease is settled or
ends (:mod:`stoplog_worker.algorithm.holds`). So whatever this cache admits meanwhile is within the limits. A
permit is used only while all of these conditions hold:

- *Time.* The lease has not ended. It lasts from the *sending* of its ask, which was not later than partition
  time at its record. It ends slightly earlier here
  (:class:`~stoplog.client.leased_client.Lease`).
- *Updates and proof.* No update came that may concern the client: the same conditions as for denials
  (:mod:`stoplog.client.update_proofs`). An update ends the lease at once.
- *Given back.* No record has reported the permit as unused, even if it seems that the record was not
  published.

The log must learn of every permit that was used. These rules ensure it:

- Each permit that was used is reported until a reply has confirmed the report. A report may thus be made
  twice, and then charges too much. If no report arrives, the lease ends in the log, and all of it is charged.
- An ask closes the earlier leases of this process that it does not name. So a lease is left unnamed only if
  the same record settles all its use. A lease that was settled earlier is settled again: the record with the
  first settlement may be lost.

The rest is economy. Leases are for clients that are checked often under one plan. The next check of such a
client carries the ask. A check that this cache cannot answer takes all permits back to the log with it, so
that no check is denied because of permits that are held here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf
from typing import Final

from stoplog.client.answer import Answer
from stoplog.client.demand import Demand, Key, Rate
from stoplog.client.leased_client import EndedLease, Lease, LeasedClient, SentAsk
from stoplog.client.metrics import Metrics
from stoplog.client.update_proofs import UpdateProofs
from stoplog.policy import MAX_COST
from stoplog.wire.checks import Check
from stoplog.wire.holds import LEASE, MAX_LEASE_MS, Ask, HoldRow, Settlement, SettlementRow
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.replies import HeldDecision, Reply

MIN_CHECKS: Final = 6
"""Checks that a client must be expected to make during its first lease. Below it, none is requested."""

MIN_CHECKS_AGAIN: Final = 4
"""The same for a further lease."""

MIN_WANT: Final = 4
"""Permits below which the log grants nothing."""

SURPLUS: Final = 1.25
"""A lease is for so many times the units that are expected."""

FIRST_TTL_S: Final = 3.0
"""Expected seconds of a client's first lease: how long leases of a limit per minute last. Later ones are
expected to last as long as the one before."""

HALF_LIFE_S: Final = 1.0
"""Seconds after which a known rate counts half. Larger leases bring fewer records, but hold back more."""

RETRY_S: Final = 0.3
"""Seconds without an ask after the log has granted nothing. They double each time."""

MAX_RETRY_S: Final = 3.0
"""The most seconds without an ask for a client that has had a lease."""

MAX_FIRST_RETRY_S: Final = 30.0
"""The most seconds for another client. If its windows are shorter than 2 s, it never gets one."""

SEVERAL_PLANS_S: Final = 60.0
"""Seconds without an ask after a check under another plan. A lease under the one plan would count under the
other, too, whose limits may be much lower."""

MAX_ENTRIES: Final = 100_000
"""Clients with leases, at most. Each takes about 1 KB."""

PAUSE_S: Final = 1.0
"""Seconds between two records of settlements, at most."""

SHORTEST_PAUSE_S: Final = 0.03
"""The least seconds between them, with the shortest leases."""

FORGET_S: Final = 10.0
"""Seconds after which a client without a lease is forgotten."""

MAX_ROWS: Final = 1_000
"""Rows in one record of settlements. A row has at most 600 bytes with two ids of 256 bytes."""

_ASK: Final = 1
_SETTLE: Final = 2


def _key(check: Check) -> Key:
    return (check.client, check.resource) if check.resource else check.client


class LeaseCache:
    """The leases of one process. Use it from the event loop only.

    The ways of a check, in the caller's order:

    1. :meth:`get` answers it, if possible.
    2. Otherwise the check joins a batch. :meth:`note` counts it, and tells whether the batch must *mark* it.
    3. When the batch is sent, :meth:`rows` returns what its marked checks ask and settle.
    4. :meth:`learn` handles the reply, :meth:`abandon` its absence.

    Args:
        metrics: Counts permits and hits.
        partitions: Number of partitions of ``checks``.
        incarnation: Random 64 bits that identify this holder. Leases of others are never touched.
        max_ms: The longest lease to ask for, in milliseconds. 0 asks for none.
        clock: Returns monotonic seconds. The times of sent batches and of proofs must be from the same clock.
    """

    def __init__(
        self, metrics: Metrics, partitions: int, incarnation: int, max_ms: int, clock: Callable[[], float]
    ) -> None:
        self._metrics = metrics
        self._incarnation = incarnation
        self._max_ms = max_ms
        self._clock = clock
        self._proofs = UpdateProofs(partitions)
        self._enabled: frozenset[int] = frozenset()
        self._demand = Demand()
        self._entries: dict[Key, LeasedClient] = {}
        self._resources: dict[str, set[str]] = {}
        """The resources in the keys of the entries, by client."""
        self._number = 0
        """Number of the last ask. It identifies the lease, and orders the asks of this process."""
        self._unsent: list[dict[tuple[str, str], list[Settlement]]] = [{} for _ in range(partitions)]
        """Settlements that no record contains yet."""
        self._looks: list[tuple[float, int, LeasedClient]] = []
        self._look_ids = count()
        self._pause_s = PAUSE_S
        self._short_until = -inf
        """Until when short leases may be open, so that settlements are sent more often."""

    # --- answers ------------------------------------------------------------------------------

    def get(self, check: Check, *, renew: bool = True) -> Answer | None:
        """Return the answer to *check* if a permit covers it, else ``None``.

        Args:
            check: The check.
            renew: Whether to return ``None`` for a check that should carry the ask for the next lease. If it
                is false, the check cannot be sent, or was denied or not answered in time.
        """
        entry = self._entries.get(check.client if not check.resource else (check.client, check.resource))
        if entry is None or (lease := entry.lease) is None or not check.cost or check.plan != entry.plan:
            return None
        now = self._clock()
        if not lease.serves(check, now):
            return None
        if renew and (lease.left <= lease.low or now >= lease.renew_at) and self._may_ask(entry, now):
            return None
        self._use(lease, check)
        metrics = self._metrics
        metrics.lease_hits += 1
        elapsed_ms = int((now - lease.since) * 1_000)
        return Answer(
            True,
            lease.limit,
            lease.remaining + lease.left,
            max(0, lease.reset_after_ms - elapsed_ms),
            0,
            lease.policy_version,
        )

    def spend(self, check: Check) -> bool:
        """Use permits for a check that fails open, without proof. Return whether there were enough."""
        entry = self._entries.get(_key(check))
        if entry is None or (lease := entry.lease) is None or not check.cost or check.plan != entry.plan:
            return False
        if check.cost > lease.left or self._clock() >= lease.until:
            return False
        self._use(lease, check)
        return True

    def _use(self, lease: Lease, check: Check) -> None:
        lease.left -= check.cost
        lease.used += check.cost
        lease.units += check.cost
        lease.hits += 1
        self._metrics.lease_used += check.cost

    # --- checks that go to the log --------------------------------------------------------------

    def note(self, partition: int, check: Check) -> bool:
        """Count a check that joins a batch of *partition*. Return whether the batch must mark it."""
        if partition not in self._enabled or not check.cost or not self._max_ms:
            return False
        key, now = _key(check), self._clock()
        rate = self._demand.add(key, check.plan, check.cost, now, MIN_CHECKS)
        entry = self._entries.get(key)
        if entry is None:
            if (
                rate is None
                or rate.checks * min(FIRST_TTL_S, self._max_ms / 1_000) < MIN_CHECKS
                or len(self._entries) >= MAX_ENTRIES
            ):
                return False
            entry = self._entries[key] = LeasedClient(check, partition, rate, now)
            if check.resource:
                self._resources.setdefault(check.client, set()).add(check.resource)
            self._look(entry, now + PAUSE_S)
        elif rate is not None and rate.checks > self._rate(entry, now).checks:
            entry.rate, entry.rated_at = rate, now
        return self._mark(entry, check, now)

    def _mark(self, entry: LeasedClient, check: Check, now: float) -> bool:
        before, lease = entry.mark, entry.lease
        serves = lease is not None and check.plan == entry.plan and lease.serves(check, now)
        if lease is not None and not serves and (lease.left or entry.asking is None):
            # A lease without permits holds nothing back. While a reply is due, its use may be reported
            # already, and a further settlement would report it twice.
            entry.mark = _SETTLE
        elif not before and self._may_ask(entry, now):
            entry.mark = _ASK
        if check.plan != entry.plan:
            entry.plan, entry.retry_at = check.plan, now + SEVERAL_PLANS_S
        return bool(entry.mark) and not before

    def _may_ask(self, entry: LeasedClient, now: float) -> bool:
        """Return whether the next check of *entry* should carry an ask."""
        if entry.asking is not None or entry.mark or now < entry.retry_at:
            return False
        return self._expected(entry, now).checks >= MIN_CHECKS_AGAIN

    def _expected(self, entry: LeasedClient, now: float) -> Rate:
        """Return the checks and units to expect during the next lease."""
        ttl_s = min(entry.ttl_s or FIRST_TTL_S, self._max_ms / 1_000)
        rate = self._rate(entry, now)
        return Rate(rate.checks * ttl_s, rate.units * ttl_s)

    def _rate(self, entry: LeasedClient, now: float) -> Rate:
        """Return the rate of *entry*. What was known before its lease counts for less and less."""
        checks, units = entry.rate
        if entry.lease is None:
            part = 0.5 ** ((now - entry.rated_at) / HALF_LIFE_S)
            return Rate(checks * part, units * part)
        rate, span = entry.lease.rate(now)
        part = 0.5 ** (span / HALF_LIFE_S)
        return Rate(rate.checks + (checks - rate.checks) * part, rate.units + (units - rate.units) * part)

    def rows(
        self, partition: int, checks: Sequence[Check], marked: Sequence[int], waits: bool
    ) -> tuple[list[HoldRow] | None, list[SentAsk]]:
        """Return what the batch of *checks*, which is sent now, asks and settles.

        Whatever a row gives back is never used again, whether or not the record is published.

        Args:
            partition: Partition of the batch.
            checks: Its checks.
            marked: Indexes of the checks for which :meth:`note` returned true.
            waits: Whether callers wait for the reply. If none does, the record requests no lease.

        Returns:
            The rows, or ``None`` if the partition grants no holds; and the asks in them.
        """
        enabled = partition in self._enabled
        if not marked:
            return ([] if enabled else None), []
        now = self._clock()
        settlements: dict[int, tuple[Settlement, ...]] = {}
        asking: dict[Key, LeasedClient] = {}
        for index in marked:
            key = _key(checks[index])
            entry = self._entries.get(key)
            if entry is None or not entry.mark:
                continue
            mark, entry.mark = entry.mark, 0
            if not enabled:
                continue
            lease = entry.lease
            if lease is not None and (mark == _SETTLE or now >= lease.until):
                settlements[index] = (self._finish(entry, now).settlement,)
            if waits and self._may_ask(entry, now):
                asking[key] = entry
        # The last check of the client in the batch carries the ask, so that no check before it is denied
        # because of the lease.
        last = {key: i for i, check in enumerate(checks) if (key := _key(check)) in asking} if asking else {}
        sent = [self._ask(entry, last[key], settlements, now) for key, entry in asking.items()]
        if not enabled:
            return None, []
        asks = {one.index: one.ask for one in sent}
        indexes = sorted(settlements.keys() | asks.keys())
        return [HoldRow(index, asks.get(index), settlements.get(index, ())) for index in indexes], sent

    def _ask(
        self, entry: LeasedClient, index: int, settlements: dict[int, tuple[Settlement, ...]], now: float
    ) -> SentAsk:
        """Ask for a lease with the check at *index*; add to *settlements* what must go with it."""
        self._number += 1
        expected = self._expected(entry, now)
        want = min(max(MIN_WANT, ceil(expected.units * SURPLUS)), MAX_COST)
        lease = entry.lease
        keep = () if lease is None else (lease.id,)
        ask = Ask(LEASE, (self._incarnation, self._number, 0), self._number, want, self._max_ms, keep)
        ended = tuple(one for one in entry.ended if now < one.gone_at)
        used = 0 if lease is None else lease.used
        reported = {one.id for row in settlements.values() for one in row}
        again = tuple(one.settlement for one in ended if one.settlement.id not in reported)
        partial = (Settlement(lease.id, used, True),) if lease is not None and used else ()
        if again or partial:
            settlements[index] = (*settlements.get(index, ()), *again, *partial)
        entry.asking = SentAsk(entry, ask, index, lease, used, ended)
        return entry.asking

    # --- replies ------------------------------------------------------------------------------

    def learn(self, partition: int, sent: Iterable[SentAsk], reply: Reply, sent_at: float) -> None:
        """Handle the reply to the batch with the asks *sent*, which was sent at *sent_at*."""
        if reply.error is not None:
            self._enabled -= {partition}  # until a heartbeat states that the partition grants holds
        for one in sent:
            answer = reply.answers[one.index] if one.index < len(reply.answers) else None
            if isinstance(answer, HeldDecision):
                self._learn(partition, one, answer, reply.applied, sent_at)
            else:
                self.abandon([one])

    def _learn(
        self, partition: int, sent: SentAsk, decision: HeldDecision, applied: int, sent_at: float
    ) -> None:
        entry, now = sent.entry, self._clock()
        is_latest = entry.asking is sent
        if is_latest:
            entry.asking = None
        if sent.lease is not None:
            sent.lease.used -= sent.used
        entry.ended = tuple(one for one in entry.ended if one not in sent.ended)
        grant = decision.grant
        if grant is None:
            self._refused(entry, now)
            return
        proof = self._proofs.of(partition)
        lease = Lease(sent.ask.id, grant, decision, proof, sent_at, now)
        entry.ttl_s, entry.refusals = lease.ttl_s, 0
        several_plans = now < entry.retry_at
        usable = is_latest and not several_plans and now < lease.until and self._max_ms
        if not usable or not proof.covers(applied):
            self._settle(entry, Settlement(sent.ask.id, 0))
            return
        if entry.lease is not None:
            self._settle(entry, self._finish(entry, now).settlement)
        entry.lease = lease
        self._metrics.leases += 1
        self._metrics.lease_granted += grant.units
        self._look(entry, lease.until)
        if lease.ttl_s < 3 * PAUSE_S:
            self._pause_s = max(SHORTEST_PAUSE_S, min(self._pause_s, lease.ttl_s / 3))
            self._short_until = now + MAX_LEASE_MS / 1_000

    def abandon(self, sent: Iterable[SentAsk]) -> None:
        """Give up asks without a reply. What they may have been granted is never used, and given back."""
        for one in sent:
            if one.entry.asking is one:
                one.entry.asking = None
                self._refused(one.entry, self._clock())
                self._settle(one.entry, Settlement(one.ask.id, 0))

    def _refused(self, entry: LeasedClient, now: float) -> None:
        longest = MAX_RETRY_S if entry.ttl_s else MAX_FIRST_RETRY_S
        entry.retry_at = max(entry.retry_at, now + min(RETRY_S * 2**entry.refusals, longest))
        entry.refusals = min(entry.refusals + 1, 10)

    # --- the end of leases ----------------------------------------------------------------------

    def _finish(self, entry: LeasedClient, now: float) -> EndedLease:
        """Stop using the lease of *entry*; return its last settlement."""
        lease = entry.lease
        assert lease is not None
        entry.rate, entry.rated_at = self._rate(entry, now), now
        entry.lease = None
        if now < lease.until:
            self._metrics.lease_returned += lease.left
        else:
            self._metrics.lease_expired += lease.left
        self._metrics.leases -= 1
        ended = EndedLease(Settlement(lease.id, lease.used), lease.gone_at)
        entry.ended = (*entry.ended, ended)
        return ended

    def _settle(self, entry: LeasedClient, settlement: Settlement) -> None:
        """Have the next record of settlements contain this one."""
        self._unsent[entry.partition].setdefault((entry.client, entry.resource), []).append(settlement)

    def _look(self, entry: LeasedClient, at: float) -> None:
        """Have :meth:`take_settlements` look at *entry* shortly before *at*, at the latest."""
        if at < entry.look_at:
            entry.look_at = at
            heappush(self._looks, (at, next(self._look_ids), entry))

    def take_settlements(self) -> list[tuple[int, list[SettlementRow]]]:
        """Return the settlements since the last call, and those of leases that end before the next one.

        Call it every :attr:`pause_s`. Each pair is a partition with at most :data:`MAX_ROWS` rows.
        """
        now = self._clock()
        if now >= self._short_until:
            self._pause_s = PAUSE_S
        horizon = now + self._pause_s * 1.1
        looked = []
        while self._looks and self._looks[0][0] <= horizon:
            at, _, entry = heappop(self._looks)
            if at == entry.look_at:
                entry.look_at = inf
                looked.append(entry)
        for entry in looked:
            self._visit(entry, now, horizon)
        found = []
        for partition, unsent in enumerate(self._unsent):
            if unsent and partition in self._enabled:
                rows = [SettlementRow(*key, tuple(settlements)) for key, settlements in unsent.items()]
                found += [
                    (partition, rows[start : start + MAX_ROWS]) for start in range(0, len(rows), MAX_ROWS)
                ]
            unsent.clear()
        return found

    def _visit(self, entry: LeasedClient, now: float, horizon: float) -> None:
        """End the lease of *entry* if it is over before *horizon*; forget the entry if it has no use."""
        lease = entry.lease
        # A reply that is due confirms what was reported, and mostly brings the next lease.
        if lease is not None and lease.until <= horizon and (entry.asking is None or lease.until <= now):
            self._settle(entry, self._finish(entry, now).settlement)
            lease = None
        entry.ended = tuple(one for one in entry.ended if now < one.gone_at)
        if lease is not None:
            self._look(entry, lease.until)
        elif entry.ended or entry.asking or entry.mark or now < entry.retry_at:
            self._look(entry, horizon + self._pause_s)
        elif now - entry.rated_at > FORGET_S:
            self._forget(entry)
        else:
            self._look(entry, entry.rated_at + FORGET_S + 2 * self._pause_s)

    def _forget(self, entry: LeasedClient) -> None:
        client, resource = entry.client, entry.resource
        del self._entries[(client, resource) if resource else client]
        if resource:
            resources = self._resources[client]
            resources.discard(resource)
            if not resources:
                del self._resources[client]

    # --- events -------------------------------------------------------------------------------

    def enable(self, partitions: Iterable[int]) -> None:
        """Ask for leases in these partitions, which grant holds, and in no others."""
        self._enabled = frozenset(partitions)

    def grants_holds(self, partition: int) -> bool:
        """Return whether *partition* grants holds, to whomever."""
        return partition in self._enabled

    def on_update(self, partition: int, update: UpdateKey, version: int) -> None:
        """End the leases that *update* may concern, whether or not a worker has applied it.

        Args:
            partition: Partition of ``limit-updates``.
            update: Key of the update.
            version: Its offset.
        """
        client, now = self._proofs.on_update(partition, update, version), self._clock()
        for entry in self._entries.values() if client is None else self._entries_of(client):
            if entry.lease is not None and entry.partition == partition:
                self._settle(entry, self._finish(entry, now).settlement)

    def _entries_of(self, client: str) -> Iterator[LeasedClient]:
        keys: list[Key] = [client, *((client, one) for one in self._resources.get(client, ()))]
        return (self._entries[key] for key in keys if key in self._entries)

    def on_proof(self, partitions: Sequence[int], at: float) -> None:
        """Note that every update written to *partitions* before *at* (seconds) has been read."""
        self._proofs.on_proof(partitions, at)

    @property
    def wants_proof(self) -> bool:
        """Whether a proof would be used. This property may be read from any thread; nothing else may."""
        return bool(self._max_ms and self._entries)

    @property
    def pause_s(self) -> float:
        """Seconds until the next call of :meth:`take_settlements`."""
        return self._pause_s

    def close(self) -> None:
        """Use and ask for no more leases. The next :meth:`take_settlements` returns the last settlements."""
        self._max_ms = 0
        now = self._clock()
        for entry in self._entries.values():
            if entry.lease is not None:
                self._settle(entry, self._finish(entry, now).settlement)
            if entry.asking is not None:
                self.abandon([entry.asking])
        self._entries.clear()
        self._resources.clear()
        self._looks.clear()
