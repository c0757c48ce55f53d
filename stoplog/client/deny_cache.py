"""Answer checks that the log is certain to deny, so that a flood from one client does not reach the log.

This module is pure: it uses neither Kafka nor timers.

A denial states when the same check would be allowed if the client spent nothing more. What the client spends
meanwhile only delays that time. Until then the log denies every check of the same client, plan and resource
whose cost is the same or higher. Only a limit update can change that: of a policy, a plan or the default, or
a reset. This gives three conditions. While all of them hold, the log would deny the check as well:

- *Time.* A denial holds from the *sending* of its check, which was not later than partition time at its
  record. It holds for slightly less than it states (:data:`MARGIN`), and never longer than
  :data:`MAX_HOLD_S`.
- *Updates.* An update read from ``limit-updates`` removes every denial that it may concern. A denial is
  stored only if the worker had applied every update that this cache has seen, so no denial outlives an
  update.
- *Proof.* A denial is used only while it is proven that every update older than :data:`PROOF_S` has been read
  (:mod:`stoplog.client.limit_update_follower`). Without a connection to the broker there is no proof.

So a denial is correct for the log as it was at some instant of the last ``PROOF_S``. A change of limits is
confirmed only ``PROOF_S`` after it was applied. Every check after the confirmation, at any gateway, is
therefore decided by the new limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Final

from stoplog.client.answer import Answer
from stoplog.client.metrics import Metrics
from stoplog.wire.checks import Check, Denied
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.replies import Decision, Reply

PROOF_S: Final = 0.2
"""Maximum age of a proof, in seconds. The confirmation of a change is delayed by the same time. A gateway at
its core's limit gets its next proof late, so a shorter time would send more checks to the log."""

MAX_HOLD_S: Final = 60.0
"""Maximum seconds that a denial holds, including a denial that only an update can end. It bounds the error if
a broker's clock jumps ahead, which empties windows early. It costs one check a minute."""

MARGIN: Final = 61
"""A denial holds for one part in this many less than it states, for two reasons. Clocks may differ in rate.
And a check under a plan with shorter windows makes the worker forget older requests up to one tick (1/60 of
the window) early."""

WANTED_S: Final = 1.0
"""Proof is fetched until this many seconds after the last check that it could have served."""

MAX_ROWS: Final = 1_000
"""Rows in one record of denials. A row has at most 800 bytes, with three ids of 256 bytes."""


class _Partition:
    """The state of one partition's updates, to which its denials refer.

    Attributes:
        index: The partition.
        last_update: Offset of the last update read; -1 before the first.
        proven_until: When the proof expires, in seconds; -inf before the first proof.
    """

    __slots__ = ("index", "last_update", "proven_until")

    def __init__(self, index: int, last_update: int = -1, proven_until: float = -inf) -> None:
        self.index = index
        self.last_update = last_update
        self.proven_until = proven_until


class _Denial:
    """A denial of *check*, and the sum of the checks that it has answered.

    Attributes:
        until: When the denial ends, in seconds.
        checks: Checks answered since the last sum.
        spent: Their total cost.
    """

    __slots__ = ("check", "checks", "decision", "home", "sent_at", "spent", "until")

    def __init__(self, check: Check, decision: Decision, home: _Partition, sent_at: float) -> None:
        self.check = check
        self.decision = decision
        self.home = home
        self.sent_at = sent_at
        wait_ms = decision.retry_after_ms
        hold_s = inf if wait_ms is None else (wait_ms - wait_ms / MARGIN) / 1_000
        self.until = sent_at + min(hold_s, MAX_HOLD_S)
        self.checks = 0
        self.spent = 0

    def answer(self, cost: int, now: float) -> Answer:
        """Return the log's answer to a check of *cost* at *now*. A higher cost may have to wait longer."""
        decision, elapsed_ms = self.decision, int((now - self.sent_at) * 1_000)
        limit, wait_ms = decision.limit, decision.retry_after_ms
        if wait_ms is not None:
            wait_ms = None if limit is not None and cost > limit else wait_ms - elapsed_ms
        reset_ms = max(0, decision.reset_after_ms - elapsed_ms)
        return Answer(False, limit, decision.remaining, reset_ms, wait_ms, decision.policy_version)


class DenyCache:
    """The denials of one gateway. Use it from the event loop only.

    Args:
        metrics: Counts denials that are stored and used.
        partitions: Number of partitions of ``checks``.
        capacity: Maximum number of denials; the client stored first is removed first. 0 stores none.
        clock: Returns monotonic seconds. The times of sent checks and of proofs must be from the same clock.
    """

    def __init__(self, metrics: Metrics, partitions: int, capacity: int, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._capacity = capacity
        self._clock = clock
        self._partitions = [_Partition(index) for index in range(partitions)]
        self._clients: dict[str, dict[tuple[str, str], _Denial]] = {}
        self._used: list[_Denial] = []  # denials with checks to sum up
        self._wanted_at = -inf

    def get(self, check: Check) -> Answer | None:
        """Return the denial of *check* if the log is certain to deny it, else ``None``."""
        denials = self._clients.get(check.client)
        if denials is None:
            return None
        denial = denials.get((check.plan, check.resource))
        if denial is None or check.cost < denial.check.cost:
            return None
        now = self._clock()
        if now >= denial.until:
            return None
        self._wanted_at = now
        if now >= denial.home.proven_until:
            return None
        if not denial.checks:
            self._used.append(denial)
        denial.checks += 1
        denial.spent += check.cost
        metrics = self._metrics
        metrics.received += 1
        metrics.rejected += 1
        metrics.deny_hits += 1
        metrics.latency.observe(0.0)
        return denial.answer(check.cost, now)

    def learn(self, partition: int, checks: Sequence[Check], reply: Reply, sent_at: float) -> None:
        """Store the denials in *reply* to *checks*, a batch of *partition* that was sent at *sent_at*."""
        for check, answer in zip(checks, reply.answers, strict=False):
            if type(answer) is Decision and not answer.allowed and check.cost:
                self._store(partition, check, answer, reply.applied, sent_at)

    def _store(self, partition: int, check: Check, decision: Decision, applied: int, sent_at: float) -> None:
        home, now = self._partitions[partition], self._clock()
        self._wanted_at = now
        if applied < home.last_update or home.proven_until == -inf or not self._capacity:
            return
        denial = _Denial(check, decision, home, sent_at)
        if now >= denial.until:
            return
        denials = self._clients.pop(check.client, {})
        self._clients[check.client] = denials  # now the last to be removed
        key = check.plan, check.resource
        other = denials.get(key)
        if other is None:
            self._metrics.deny_entries += 1
        elif other.home is home and other.check.cost < check.cost and now < other.until:
            return  # it serves this cost, and lower costs too
        denials[key] = denial
        self._metrics.deny_stores += 1
        while self._metrics.deny_entries > self._capacity:
            self._forget(next(iter(self._clients)))

    def on_update(self, partition: int, update: UpdateKey, version: int) -> None:
        """Remove the denials that *update* may concern, whether or not a worker has applied it.

        Args:
            partition: Partition of ``limit-updates``.
            update: Key of the update.
            version: Its offset.
        """
        home = self._partitions[partition]
        home.last_update = version
        if update.kind in ("client", "reset"):
            self._forget(update.id)
        else:
            # Stored denials refer to the old object, which is never proven again.
            self._partitions[partition] = _Partition(partition, version, home.proven_until)
            home.proven_until = -inf

    def _forget(self, client: str) -> None:
        self._metrics.deny_entries -= len(self._clients.pop(client, ()))

    def on_proof(self, partitions: Sequence[int], at: float) -> None:
        """Note that every update written to *partitions* before *at* (seconds) has been read."""
        for partition in partitions:
            self._partitions[partition].proven_until = at + PROOF_S

    @property
    def wants_proof(self) -> bool:
        """Whether a proof would be used. This property may be read from any thread; nothing else may."""
        return self._clock() - self._wanted_at < WANTED_S

    def take_sums(self) -> list[tuple[int, list[Denied]]]:
        """Return the sums of the checks denied since the last call, as pairs of a partition and its rows.

        A pair has at most :data:`MAX_ROWS` rows.
        """
        rows: list[list[Denied]] = [[] for _ in self._partitions]
        for denial in self._used:
            check = denial.check
            row = Denied(check.client, check.plan, check.resource, denial.checks, denial.spent)
            rows[denial.home.index].append(row)
            denial.checks = denial.spent = 0
        self._used.clear()
        return [
            (partition, sums[start : start + MAX_ROWS])
            for partition, sums in enumerate(rows)
            for start in range(0, len(sums), MAX_ROWS)
        ]

    def close(self) -> None:
        """Use and store no more denials. :meth:`take_sums` still returns the sums of those used before."""
        self._capacity = 0
        self._clients.clear()
        self._metrics.deny_entries = 0
