"""Allow checks of busy clients without a round trip, by permits that the log has granted in advance.

This module is pure: it uses neither Kafka nor timers. It is the twin of :mod:`stoplog.client.deny_cache`.

A *lease* is a number of permits. The log counts all of them from the grant until the lease is settled or
ends (:mod:`stoplog_worker.algorithm.holds`). So whatever this cache admits meanwhile is within the limits. A
permit is used only while all of these conditions hold:

- *Time.* The lease has not ended. It lasts from the *sending* of its ask, which was not later than partition
  time at its record. It ends slightly earlier here
  (:func:`~stoplog.client.lease_table.lease_end`).
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
that it is not denied because of permits that are held here. A reservation, a refund, or a check that costs
much, also takes back a lease that is being granted.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from math import ceil, inf
from typing import Final

from msgspec.structs import replace

from stoplog.client.answer import Answer
from stoplog.client.demand import Demand, Key, Rate
from stoplog.client.lease_table import MAX_ENTRIES, EndedLease, LeaseTable, SentAsk, lease_end
from stoplog.client.metrics import Metrics
from stoplog.client.update_proofs import UpdateProofs
from stoplog.policy import MAX_COST
from stoplog.wire.checks import Check
from stoplog.wire.holds import LEASE, MAX_LEASE_MS, Ask, HoldId, HoldRow, Settlement, SettlementRow
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.replies import HeldDecision, Reply

MIN_CHECKS: Final = 6
"""Checks that a client must be expected to make during its first lease. Below it, none is requested."""

MIN_CHECKS_AGAIN: Final = 4
"""The same for a further lease."""

MIN_CHECKS_LEFT: Final = 2
"""Checks that must be expected in the last part of a lease. Below it, the lease is not renewed, but ends."""

MIN_WANT: Final = 4
"""Permits below which the log grants nothing, unless the limits are generous."""

FEW: Final = 3
"""Permits to request for a client that is checked less often, but was checked before. The log grants them
only if the limits are generous: they then hold back next to nothing."""

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

PAUSE_S: Final = 1.0
"""Seconds between two records of settlements, at most."""

LAST_PAUSE_S: Final = 0.1
"""The most seconds between them while a lease is in use whose ask got no reply. It then serves nearly to its
end."""

SHORTEST_PAUSE_S: Final = 0.03
"""The least seconds between them, with the shortest leases."""

TICK_S: Final = 0.01
"""Seconds into which the timer divides time, for clients to look at. It is a part of the shortest pause."""

FORGET_S: Final = 10.0
"""Seconds after which a client without a lease is forgotten."""

MAX_ROWS: Final = 1_000
"""Rows in one record of settlements. A row has at most 600 bytes with two ids of 256 bytes."""

COSTLY: Final = 4
"""A check is costly if it costs more than one part in this many of the permits that are requested."""

# What a marked check carries. Each includes the one before, except that what gives back asks for nothing.
_ASK: Final = 1
_SETTLE: Final = 2
_GIVE_BACK: Final = 3
"""The lease, and the one that is being granted."""


def _key(check: Check) -> Key:
    return (check.client, check.resource) if check.resource else check.client


class LeaseCache:
    """The leases of one process. Use it from the event loop only.

    The ways of a check, in the caller's order:

    1. :meth:`get` answers it, if possible.
    2. Otherwise the check joins a batch. :meth:`note` counts it, and tells whether the batch must *mark* it.
    3. When the batch is sent, :meth:`rows` returns what its marked checks ask and settle.
    4. :meth:`show` completes the reply for the callers.
    5. :meth:`learn` handles it, :meth:`abandon` its absence.

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
        self._rows: dict[Key, int] = {}
        self._table = LeaseTable()
        self._asking: dict[int, SentAsk] = {}
        """The asks that wait for a reply, by row."""
        self._resources: dict[str, set[str]] = {}
        """The resources in the keys of the table, by client."""
        self._number = 0
        """Number of the last ask. It identifies the lease, and orders the asks of this process."""
        self._unsent: list[dict[Key, list[Settlement]]] = [{} for _ in range(partitions)]
        """Settlements that no record contains yet."""
        self._looks: dict[int, array[int]] = {}
        """The rows to look at, by tick,"""
        self._ticks: list[int] = []
        """and a heap of these ticks."""
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
        row = self._rows.get(check.client if not check.resource else (check.client, check.resource))
        if row is None:
            return None
        table, cost = self._table, check.cost
        left = table.left[row]
        if not cost or cost > left or check.plan != table.plan[row]:
            return None
        now = self._clock()
        if now >= table.proof[row].proven_until:
            return None
        # A lease that need not be renewed yet has not ended.
        if (left <= table.low[row] or now >= table.renew_at[row]) and (
            now >= table.until[row] or (renew and self._should_renew(row, now))
        ):
            return None
        table.left[row] = left = left - cost
        if cost > 1:
            table.beyond[row] += cost - 1
        metrics = self._metrics
        metrics.lease_hits += 1
        metrics.lease_used += cost
        return Answer(
            True,
            table.limit[row],
            table.remaining[row] + left,
            max(0, int((table.reset_at[row] - now) * 1_000 + 0.5)),
            0,
            table.policy_version[row],
        )

    def spend(self, check: Check) -> bool:
        """Use permits for a check that fails open, without proof. Return whether there were enough."""
        row, table, cost = self._rows.get(_key(check)), self._table, check.cost
        if row is None or not cost or cost > table.left[row] or check.plan != table.plan[row]:
            return False
        if self._clock() >= table.until[row]:
            return False
        table.left[row] -= cost
        table.beyond[row] += cost - 1
        self._metrics.lease_used += cost
        return True

    # --- checks that go to the log --------------------------------------------------------------

    def note(self, partition: int, check: Check) -> bool:
        """Count a check that joins a batch of *partition*. Return whether the batch must mark it."""
        now = self._clock()
        row = self._count(partition, check, now)
        return row is not None and self._mark(row, check, now)

    def count(self, partition: int, check: Check) -> None:
        """Count a check that is published without waiting for a reply, so it can carry no ask.

        Otherwise, the next lease of its client would be too small in overload, and more checks would fail
        open.
        """
        self._count(partition, check, self._clock())

    def _count(self, partition: int, check: Check, now: float) -> int | None:
        """Count a check of *partition*. Return the row of its client if that may have a lease."""
        if partition not in self._enabled or not check.cost or not self._max_ms:
            return None
        key = _key(check)
        rate = self._demand.add(key, check.plan, check.cost, now, MIN_CHECKS)
        again = self._demand.is_known(key, check.plan, now)
        row = self._rows.get(key)
        if row is None:
            often = rate and rate.checks * min(FIRST_TTL_S, self._max_ms / 1_000) >= MIN_CHECKS
            if not (often or (again and check.cost == 1)) or len(self._rows) >= MAX_ENTRIES:
                return None
            row = self._rows[key] = self._table.add(key, check.plan, partition)
            self._table.set_rate(row, rate or Rate(0, 0), now)
            if check.resource:
                self._resources.setdefault(check.client, set()).add(check.resource)
            self._look(row, now + PAUSE_S)
        elif rate is not None and rate.checks > self._rate(row, now).checks:
            self._table.set_rate(row, rate, now)
        return row

    def give_back(self, check: Check) -> bool:
        """Have the lease of *check*'s client go back with *check*, a reservation or a refund.

        A lease that is being granted goes back, too. Return whether the batch must mark the check.
        """
        row, table = self._rows.get(_key(check)), self._table
        if row is None or not (
            table.number[row] or table.ended_number[row] or table.mark[row] or row in self._asking
        ):
            return False
        before, table.mark[row] = table.mark[row], _GIVE_BACK
        return not before

    def _mark(self, row: int, check: Check, now: float) -> bool:
        table, asked = self._table, self._asking.get(row)
        before, same_plan = table.mark[row], check.plan == table.plan[row]
        serves = same_plan and table.serves(row, check, now)
        if asked is not None and not serves and (not same_plan or check.cost * COSTLY > asked.ask.want):
            # What is being granted would not answer it, and could deny it.
            table.mark[row] = _GIVE_BACK
        elif table.number[row] and not serves and (table.left[row] or asked is None):
            table.mark[row] = max(before, _SETTLE)
        elif not before and self._may_ask(row, now, few=check.cost == 1):
            table.mark[row] = _ASK
        if not same_plan:
            table.set_plan(row, check.plan)
            table.retry_at[row] = now + SEVERAL_PLANS_S
        return bool(table.mark[row]) and not before

    def _may_ask(self, row: int, now: float, *, few: bool = False) -> bool:
        """Return whether the next check of the client of *row* should carry an ask.

        Args:
            row: The client.
            now: Seconds.
            few: Whether a lease of :data:`FEW` permits would be of use.
        """
        if row in self._asking or self._table.mark[row] or now < self._table.retry_at[row]:
            return False
        return (few and not self._table.not_generous[row]) or self._is_often(row, self._expected(row, now))

    def _should_renew(self, row: int, now: float) -> bool:
        """Return whether a check of the client of *row*, which its lease covers, should carry an ask.

        When only time is short, a client that is checked less often loses nothing if its lease ends first.
        """
        table = self._table
        if not self._may_ask(row, now):
            return False
        if table.left[row] <= table.low[row]:
            return True
        return self._rate(row, now).checks * (table.until[row] - table.renew_at[row]) >= MIN_CHECKS_LEFT

    def _is_often(self, row: int, expected: Rate) -> bool:
        """Return whether the *expected* checks are worth a lease under limits that are not generous."""
        return expected.checks >= (MIN_CHECKS_AGAIN if self._table.ttl_s[row] else MIN_CHECKS)

    def _expected(self, row: int, now: float) -> Rate:
        """Return the checks and units to expect during the next lease."""
        ttl_s = min(self._table.ttl_s[row] or FIRST_TTL_S, self._max_ms / 1_000)
        rate = self._rate(row, now)
        return Rate(rate.checks * ttl_s, rate.units * ttl_s)

    def _rate(self, row: int, now: float) -> Rate:
        """Return the rate of a client. What was known before its lease counts for less and less."""
        table = self._table
        checks, units = table.checks[row], table.units[row]
        if not table.number[row]:
            part = 0.5 ** ((now - table.rated_at[row]) / HALF_LIFE_S)
            return Rate(checks * part, units * part)
        rate, span = table.lease_rate(row, now)
        part = 0.5 ** (span / HALF_LIFE_S)
        return Rate(rate.checks + (checks - rate.checks) * part, rate.units + (units - rate.units) * part)

    def rows(
        self,
        partition: int,
        checks: Sequence[Check],
        marked: Sequence[int],
        waits: bool,
        reserving: Collection[int] = (),
    ) -> tuple[list[HoldRow] | None, list[SentAsk]]:
        """Return what the batch of *checks*, which is sent now, asks and settles.

        Whatever a row gives back is never used again, whether or not the record is published.

        Args:
            partition: Partition of the batch.
            checks: Its checks.
            marked: Indexes of the checks for which :meth:`note` or :meth:`give_back` returned true.
            waits: Whether callers wait for the reply. If none does, the record requests no lease.
            reserving: Indexes of checks that ask for a reservation, or settle one. The record requests no
                lease for their clients.

        Returns:
            The rows, or ``None`` if the partition grants no holds; and the asks in them.
        """
        enabled = partition in self._enabled
        if not marked:
            return ([] if enabled else None), []
        now, table = self._clock(), self._table
        settlements: dict[int, tuple[Settlement, ...]] = {}
        asking: dict[Key, int] = {}
        reserved = {_key(checks[index]) for index in reserving}
        for index in marked:
            key = _key(checks[index])
            row = self._rows.get(key)
            if row is None or not table.mark[row]:
                continue
            mark, table.mark[row] = table.mark[row], 0
            if not enabled:
                continue
            if back := self._back(row, mark, now):
                settlements[index] = back
            if waits and key not in reserved and self._may_ask(row, now, few=checks[index].cost == 1):
                asking[key] = row
        # The last check of the client in the batch carries the ask, so that no check before it is denied
        # because of the lease.
        last = {key: i for i, check in enumerate(checks) if (key := _key(check)) in asking} if asking else {}
        sent = [self._ask(row, last[key], settlements, now) for key, row in asking.items()]
        if not enabled:
            return None, []
        asks = {one.position: one.ask for one in sent}
        indexes = sorted(settlements.keys() | asks.keys())
        return [HoldRow(index, asks.get(index), settlements.get(index, ())) for index in indexes], sent

    def _back(self, row: int, mark: int, now: float) -> tuple[Settlement, ...]:
        """Return what a check with this *mark* gives back to the log."""
        table, asked, back = self._table, self._asking.get(row), list[Settlement]()
        if mark != _ASK:
            # The record with their settlements may be waiting for the timer.
            back += map(self._last, table.ended_leases(row, now))
        # A lease without permits holds nothing back. While a reply is due, its use may be reported already,
        # and a further settlement would report it twice.
        due = mark != _ASK and (table.left[row] or asked is None)
        if table.number[row] and (due or now >= table.until[row]):
            back.append(self._finish(row, now))
        if mark == _GIVE_BACK:
            if asked is not None:
                # Its record precedes this one. Whatever it was granted is never used.
                del self._asking[row]
                back.append(Settlement(asked.ask.id, 0))
            table.retry_at[row] = max(table.retry_at[row], now + RETRY_S)
        return tuple(back)

    def _ask(
        self, row: int, index: int, settlements: dict[int, tuple[Settlement, ...]], now: float
    ) -> SentAsk:
        """Ask for a lease with the check at *index*; add to *settlements* what must go with it."""
        self._number += 1
        table = self._table
        expected = self._expected(row, now)
        want = FEW
        if self._is_often(row, expected):
            want = min(max(MIN_WANT, ceil(expected.units * SURPLUS)), MAX_COST)
        lease, used = table.number[row], table.used(row)
        keep = (self._id(lease),) if lease else ()
        ask = Ask(LEASE, self._id(self._number), self._number, want, self._max_ms, keep)
        ended = table.ended_leases(row, now)
        reported = {one.id for settled in settlements.values() for one in settled}
        again = tuple(self._last(one) for one in ended if self._id(one.number) not in reported)
        partial = (Settlement(self._id(lease), used, True),) if used else ()
        if again or partial:
            settlements[index] = (*settlements.get(index, ()), *again, *partial)
        spent = table.size[row] - table.left[row]
        sent = SentAsk(table.partition[row], table.key[row], ask, index, lease, spent, ended)
        self._asking[row] = sent
        return sent

    def _id(self, number: int) -> HoldId:
        """Return the id of the lease that ask *number* has brought."""
        return (self._incarnation, number, 0)

    def _last(self, ended: EndedLease) -> Settlement:
        return Settlement(self._id(ended.number), ended.used)

    # --- replies ------------------------------------------------------------------------------

    def show(self, checks: Sequence[Check], sent: Iterable[SentAsk], reply: Reply) -> Reply:
        """Return *reply* as callers see it: the permits that are left here remain to the client.

        The log counts all units of a lease from its grant. Without this, ``remaining`` would fall by a lease
        with each ask, and rise again with the next answer from the lease.

        Args:
            checks: The checks of the batch.
            sent: Its asks.
            reply: The reply to it, which :meth:`learn` has not handled yet.
        """
        rows = self._rows
        if not rows or reply.error is not None:
            return reply
        found = [
            (index, row)
            for index, check in enumerate(checks)
            if (row := rows.get(check.client if not check.resource else (check.client, check.resource)))
            is not None
        ]
        if not found:
            return reply
        now, table, answers = self._clock(), self._table, list(reply.answers)
        granted = {one.position for one in sent}
        for index, row in found:
            answer = answers[index] if index < len(answers) else None
            if not isinstance(answer, HeldDecision) or not answer.allowed:
                continue
            own = table.left[row] if now < table.until[row] and checks[index].plan == table.plan[row] else 0
            if index in granted and answer.grant is not None:
                own += answer.grant.units
            if own and answer.limit is not None and answer.remaining is not None:
                answers[index] = replace(answer, remaining=min(answer.limit, answer.remaining + own))
        return replace(reply, answers=answers)

    def learn(self, partition: int, sent: Iterable[SentAsk], reply: Reply, sent_at: float) -> None:
        """Handle the reply to the batch with the asks *sent*, which was sent at *sent_at*."""
        if reply.error is not None:
            self._enabled -= {partition}  # until a heartbeat states that the partition grants holds
        for one in sent:
            answer = reply.answers[one.position] if one.position < len(reply.answers) else None
            if isinstance(answer, HeldDecision):
                self._learn(one, answer, reply.applied, sent_at)
            else:
                self.abandon([one])

    def _learn(self, sent: SentAsk, decision: HeldDecision, applied: int, sent_at: float) -> None:
        now, table, grant = self._clock(), self._table, decision.grant
        row = self._rows.get(sent.key)
        is_latest = row is not None and self._asking.get(row) is sent
        if row is not None:
            if is_latest:
                del self._asking[row]
                table.unanswered[row] = 0
            if sent.lease and table.number[row] == sent.lease:
                table.reported[row] = max(table.reported[row], sent.used)
            table.forget_ended(row, now, sent.ended)
            if grant is None and sent.ask.want < MIN_WANT:
                table.not_generous[row] = 1
            elif grant is None:
                self._refused(row, now)
        if grant is None:
            return
        proof = self._proofs.of(sent.partition)
        usable = is_latest and now < lease_end(sent_at, grant) and self._max_ms and proof.covers(applied)
        if row is None or not usable or now < table.retry_at[row]:
            self._settle(sent.partition, sent.key, Settlement(sent.ask.id, 0))
            return
        back = 0
        if table.number[row]:
            back = table.left[row] if now < table.until[row] else 0
            self._settle(sent.partition, sent.key, self._finish(row, now))
        table.ttl_s[row], table.refusals[row], table.not_generous[row] = grant.ttl_ms / 1_000, 0, 0
        table.accept(row, sent.ask, grant, decision, proof, sent_at, now)
        table.remaining[row] += back
        self._metrics.leases += 1
        self._metrics.lease_granted += grant.units
        self._look(row, table.until[row])
        if grant.ttl_ms < 3_000 * PAUSE_S:
            self._shorten_pause(max(SHORTEST_PAUSE_S, grant.ttl_ms / 3_000), now + MAX_LEASE_MS / 1_000)

    def abandon(self, sent: Iterable[SentAsk]) -> None:
        """Give up asks without a reply. What they may have been granted is never used, and given back."""
        for one in sent:
            row = self._rows.get(one.key)
            if row is not None and self._asking.get(row) is one:
                del self._asking[row]
                self._table.unanswered[row] = 1
                self._refused(row, self._clock())
                self._settle(one.partition, one.key, Settlement(one.ask.id, 0))

    def _refused(self, row: int, now: float) -> None:
        table = self._table
        refusals, longest = table.refusals[row], MAX_RETRY_S if table.ttl_s[row] else MAX_FIRST_RETRY_S
        table.retry_at[row] = max(table.retry_at[row], now + min(RETRY_S * 2**refusals, longest))
        table.refusals[row] = min(refusals + 1, 10)

    # --- the end of leases ----------------------------------------------------------------------

    def _finish(self, row: int, now: float) -> Settlement:
        """Stop using the lease of *row*; return its last settlement."""
        table, left = self._table, self._table.left[row]
        table.set_rate(row, self._rate(row, now), now)
        if now < table.until[row]:
            self._metrics.lease_returned += left
        else:
            self._metrics.lease_expired += left
        self._metrics.leases -= 1
        return self._last(table.end(row))

    def _settle(self, partition: int, key: Key, settlement: Settlement) -> None:
        """Have the next record of settlements contain this one."""
        self._unsent[partition].setdefault(key, []).append(settlement)

    def _look(self, row: int, at: float) -> None:
        """Have :meth:`take_settlements` look at *row* shortly before *at*, at the latest."""
        look_at = self._table.look_at
        if not look_at[row] or at < look_at[row]:
            look_at[row] = at
            tick = int(at / TICK_S)
            if tick not in self._looks:
                self._looks[tick] = array("i")
                heappush(self._ticks, tick)
            self._looks[tick].append(row)

    def _shorten_pause(self, pause_s: float, until: float) -> None:
        """Have :meth:`take_settlements` called at least every *pause_s*, until that time."""
        self._pause_s = min(self._pause_s, pause_s)
        self._short_until = max(self._short_until, until)

    def take_settlements(self) -> list[tuple[int, list[SettlementRow]]]:
        """Return the settlements since the last call, and those of leases that end before the next one.

        Call it every :attr:`pause_s`. Each pair is a partition with at most :data:`MAX_ROWS` rows.
        """
        now, look_at = self._clock(), self._table.look_at
        if now >= self._short_until:
            self._pause_s = PAUSE_S
        horizon = now + self._pause_s * 1.1
        looked = array("i")
        while self._ticks and self._ticks[0] <= horizon / TICK_S:
            tick = heappop(self._ticks)
            for row in self._looks.pop(tick):
                if int(look_at[row] / TICK_S) == tick:
                    look_at[row] = 0
                    looked.append(row)
        for row in looked:
            self._visit(row, now, horizon)
        found = []
        for partition, unsent in enumerate(self._unsent):
            if unsent and partition in self._enabled:
                rows = [
                    SettlementRow(*((key, "") if isinstance(key, str) else key), tuple(settlements))
                    for key, settlements in unsent.items()
                ]
                found += [
                    (partition, rows[start : start + MAX_ROWS]) for start in range(0, len(rows), MAX_ROWS)
                ]
            unsent.clear()
        return found

    def _visit(self, row: int, now: float, horizon: float) -> None:
        """End the lease of *row* if it is over before *horizon*; forget the client if the row has no use."""
        table, until = self._table, self._table.until[row]
        if table.number[row] and until <= horizon and (until <= now or not self._lasts(row, now)):
            self._settle(table.partition[row], table.key[row], self._finish(row, now))
        if table.ended_number[row]:
            table.forget_ended(row, now)
        if table.number[row]:
            self._look(row, until)
        elif table.ended_number[row] or row in self._asking or table.mark[row] or now < table.retry_at[row]:
            self._look(row, max(horizon + self._pause_s, table.ended_gone_at[row], table.retry_at[row]))
        elif now - table.rated_at[row] > FORGET_S:
            self._forget(row)
        else:
            self._look(row, table.rated_at[row] + FORGET_S + 2 * self._pause_s)

    def _lasts(self, row: int, now: float) -> bool:
        """Return whether the lease of *row*, which ends soon, is still of use until the next look at it."""
        table, until = self._table, self._table.until[row]
        # A reply that is due confirms what was reported, and mostly brings the next lease. So does the next
        # check of a client that is still hot, once the renewal is due.
        if row in self._asking or (now < table.renew_at[row] and self._may_ask(row, now)):
            return True
        # Nobody renews it while no worker replies. The client has no other exact answers until it ends.
        if table.unanswered[row] and until - now > LAST_PAUSE_S * 1.1:
            self._shorten_pause(LAST_PAUSE_S, until)
            return True
        return False

    def _forget(self, row: int) -> None:
        key = self._table.key[row]
        del self._rows[key]
        self._table.remove(row)
        if not isinstance(key, str):
            client, resource = key
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
        client = self._proofs.on_update(partition, update, version)
        rows = tuple(self._rows.values() if client is None else self._rows_of(client))
        self._end_leases(row for row in rows if self._table.partition[row] == partition)
        for row in rows:
            self._table.forget_refusals(row)

    def _rows_of(self, client: str) -> Iterator[int]:
        keys: list[Key] = [client, *((client, one) for one in self._resources.get(client, ()))]
        return (self._rows[key] for key in keys if key in self._rows)

    def _end_leases(self, rows: Iterable[int]) -> None:
        table, now = self._table, self._clock()
        for row in rows:
            if table.number[row]:
                self._settle(table.partition[row], table.key[row], self._finish(row, now))

    def on_proof(self, partitions: Sequence[int], at: float) -> None:
        """Note that every update written to *partitions* before *at* (seconds) has been read."""
        self._proofs.on_proof(partitions, at)

    @property
    def wants_proof(self) -> bool:
        """Whether a proof would be used. This property may be read from any thread; nothing else may."""
        return bool(self._max_ms and self._rows)

    @property
    def pause_s(self) -> float:
        """Seconds until the next call of :meth:`take_settlements`."""
        return self._pause_s

    def close(self) -> None:
        """Use and ask for no more leases. The next :meth:`take_settlements` returns the last settlements."""
        self._max_ms = 0
        self._end_leases(self._rows.values())
        self.abandon(list(self._asking.values()))
        self._rows.clear()
        self._table = LeaseTable()
        self._resources.clear()
        self._looks.clear()
        self._ticks.clear()
