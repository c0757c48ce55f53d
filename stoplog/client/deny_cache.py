"""Answer checks that the log is certain to deny, so that a flood from one client does not reach the log.

This module is pure: it uses neither Kafka nor timers.

A denial states when the same check would be allowed if the client spent nothing more. What the client spends
meanwhile only delays that time. Until then the log denies the same check: of the same client, plan, resource
and cost. Only charges count for that time, because what others hold may come back earlier (:func:`firm_ms`).
So only a limit update can change it: of a policy, a plan or the default, or a reset. This gives three
conditions. While all of them hold, the log would deny the check as well:

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

Its ``remaining`` and ``retry_after_ms`` must be correct as well. After the denial of a cost of 1, no check
passes until that one can, so its numbers stay as they are. They may change meanwhile in three cases. Then
they are shown for :data:`PROOF_S` only, and later only instead of failing open:

- *A higher cost was denied.* Lower costs may still pass, here or at another gateway.
- *Units are held.* A settlement may charge more than was held.
- *The partition has costs that no limit judges*, such as charges after a response. Its worker announces them
  in its heartbeats, for some minutes after the last one. The first one is known here with the next heartbeat
  (:data:`stoplog.wire.heartbeats.HEARTBEAT_S`). Until then, a ``retry_after_ms`` may be too short.

What is charged through this gateway removes the denials of the same client and resource.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from math import inf
from typing import Final, TypeGuard

from stoplog.client.answer import Answer
from stoplog.client.metrics import Metrics
from stoplog.client.update_proofs import PROOF_S, PartitionProof, UpdateProofs
from stoplog.wire.checks import Check, Denied
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.replies import Decision, HeldDecision, Reply

MAX_HOLD_S: Final = 60.0
"""Maximum seconds that a denial holds, including a denial that only an update can end. It bounds the error if
a broker's clock jumps ahead, which empties windows early. It costs one check a minute."""

MARGIN: Final = 61
"""A denial holds for one part in this many less than it states, for two reasons. Clocks may differ in rate.
And a check under a plan with shorter windows makes the worker forget older requests up to one tick (1/60 of
the window) early."""

WANTED_S: Final = 1.0
"""Proof is fetched until this many seconds after the last check that it could have served."""

MAX_COSTS: Final = 64
"""Denials kept of one client and resource, one for each cost and plan. One more removes the oldest."""

MAX_ROWS: Final = 1_000
"""Rows in one record of denials. A row has at most 800 bytes, with three ids of 256 bytes."""


class _Denial:
    """A denial of *check*, and how many checks it has answered.

    Attributes:
        until: When the denial ends, in seconds.
        exact_until: Until when its numbers are exact, in seconds.
        checks: Checks answered since the last sum.
    """

    __slots__ = ("check", "checks", "decision", "exact_until", "home", "learned_at", "until")

    def __init__(
        self,
        check: Check,
        decision: Decision,
        home: PartitionProof,
        sent_at: float,
        learned_at: float,
        *,
        unjudged: bool,
    ) -> None:
        self.check = check
        self.decision = decision
        self.home = home
        self.learned_at = learned_at
        wait_ms = firm_ms(decision)
        hold_s = inf if wait_ms is None else (wait_ms - wait_ms / MARGIN) / 1_000
        self.until = self.exact_until = sent_at + min(hold_s, MAX_HOLD_S)
        if (check.cost > 1 or unjudged or _regards_holds(decision)) and decision.limit != 0:
            self.exact_until = min(self.until, sent_at + PROOF_S)
        self.checks = 0

    def answer(self, now: float) -> Answer:
        """Return the log's answer to the check at *now*."""
        # The check was decided before its reply arrived. So these times are never too short.
        decision, elapsed_ms = self.decision, int((now - self.learned_at) * 1_000)
        wait_ms = decision.retry_after_ms
        return Answer(
            False,
            decision.limit,
            decision.remaining,
            max(0, decision.reset_after_ms - elapsed_ms),
            None if wait_ms is None else wait_ms - elapsed_ms,
            decision.policy_version,
        )


def firm_ms(decision: Decision) -> int | None:
    """Return for how many ms a denial stands, whatever happens but a limit update; ``None``: without end.

    Units that are held may be given back at any time. So a denial that depends on them is shorter than its
    ``retry_after_ms``.
    """
    return decision.firm_ms if _regards_holds(decision) else decision.retry_after_ms


def _regards_holds(decision: Decision) -> TypeGuard[HeldDecision]:
    return isinstance(decision, HeldDecision) and decision.firm_ms != -1


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
        self._partitions = partitions
        self._proofs = UpdateProofs(partitions)
        self._clients: dict[str, dict[str, dict[tuple[str, int], _Denial]]] = {}
        """Denials by client, then by resource, then by plan and cost."""
        self._used: list[_Denial] = []  # denials with checks to sum up
        self._wanted_at = -inf
        self._unjudged: Set[int] = frozenset()

    def get(self, check: Check, *, failing_open: bool = False) -> Answer | None:
        """Return the denial of *check* if the log is certain to deny it, else ``None``.

        Args:
            check: The check.
            failing_open: The check fails open otherwise, so a denial is returned although its numbers may no
                longer be exact.
        """
        resources = self._clients.get(check.client)
        if resources is None:
            return None
        denials = resources.get(check.resource)
        if denials is None:
            return None
        denial = denials.get((check.plan, check.cost))
        if denial is None:
            return None
        now = self._clock()
        if now >= (denial.until if failing_open else denial.exact_until):
            return None
        self._wanted_at = now
        if now >= denial.home.proven_until:
            return None
        if not denial.checks:
            self._used.append(denial)
        denial.checks += 1
        metrics = self._metrics
        metrics.received += 1
        metrics.rejected += 1
        metrics.deny_hits += 1
        metrics.latency.observe(0.0)
        return denial.answer(now)

    def knows(self, client: str) -> bool:
        """Return whether there may be a denial of *client*."""
        return client in self._clients

    def learn(
        self, partition: int, checks: Sequence[Check], reply: Reply, sent_at: float, *, held: bool = False
    ) -> None:
        """Store the denials in *reply* to *checks*, a batch of *partition* that was sent at *sent_at*.

        If units may be *held* there, a denial is stored only with the time for which it is firm. A batch that
        was sent before this was known has none. An allowed check removes the denials of its client and
        resource, whose numbers it has changed.
        """
        clients = self._clients
        for check, answer in zip(checks, reply.answers, strict=False):
            if isinstance(answer, Decision) and check.cost:
                if not answer.allowed:
                    if held and not isinstance(answer, HeldDecision):
                        continue
                    self._store(partition, check, answer, reply.applied, sent_at)
                elif check.client in clients:
                    self._forget_resource(check)

    def on_hold(self, check: Check) -> None:
        """Remove the denials that *check* may have changed: it carried a charge, a refund or settlements.

        Its reply was passed to :meth:`learn`. A check that reserves has a cost, and is like any other.
        """
        if not check.cost and check.client in self._clients:
            self._forget_resource(check)

    def _forget_resource(self, check: Check) -> None:
        self._metrics.deny_entries -= len(self._clients[check.client].pop(check.resource, ()))

    def expect_unjudged(self, partitions: Set[int]) -> None:
        """Expect costs that no limit judges in *partitions* from now on, and in no others."""
        added, self._unjudged = partitions - self._unjudged, partitions
        if added:
            for resources in self._clients.values():
                for denials in resources.values():
                    for denial in denials.values():
                        if denial.home.index in added and denial.decision.limit != 0:
                            denial.exact_until = -inf

    def _store(self, partition: int, check: Check, decision: Decision, applied: int, sent_at: float) -> None:
        home, now = self._proofs.of(partition), self._clock()
        self._wanted_at = now
        if not home.covers(applied) or not self._capacity:
            return
        denial = _Denial(check, decision, home, sent_at, now, unjudged=partition in self._unjudged)
        if now >= denial.until:
            return
        resources = self._clients.pop(check.client, {})
        self._clients[check.client] = resources  # now the last to be removed
        denials = resources.setdefault(check.resource, {})
        if denials.pop((check.plan, check.cost), None) is None:
            self._metrics.deny_entries += 1
        denials[check.plan, check.cost] = denial
        if len(denials) > MAX_COSTS:
            del denials[next(iter(denials))]
            self._metrics.deny_entries -= 1
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
        client = self._proofs.on_update(partition, update, version)
        if client is not None:
            self._forget(client)

    def _forget(self, client: str) -> None:
        resources = self._clients.pop(client, {})
        self._metrics.deny_entries -= sum(map(len, resources.values()))

    def on_proof(self, partitions: Sequence[int], at: float) -> None:
        """Note that every update written to *partitions* before *at* (seconds) has been read."""
        self._proofs.on_proof(partitions, at)

    @property
    def wants_proof(self) -> bool:
        """Whether a proof would be used. This property may be read from any thread; nothing else may."""
        return self._clock() - self._wanted_at < WANTED_S

    def take_sums(self) -> list[tuple[int, list[Denied]]]:
        """Return the sums of the checks denied since the last call, as pairs of a partition and its rows.

        A pair has at most :data:`MAX_ROWS` rows.
        """
        sums: list[dict[tuple[str, str, str], tuple[int, int]]] = [{} for _ in range(self._partitions)]
        for denial in self._used:
            check = denial.check
            of_partition, key = sums[denial.home.index], (check.client, check.plan, check.resource)
            checks, cost = of_partition.get(key, (0, 0))
            of_partition[key] = checks + denial.checks, cost + denial.checks * check.cost
            denial.checks = 0
        self._used.clear()
        rows = [[Denied(*key, *sum_) for key, sum_ in of_partition.items()] for of_partition in sums]
        return [
            (partition, found[start : start + MAX_ROWS])
            for partition, found in enumerate(rows)
            for start in range(0, len(found), MAX_ROWS)
        ]

    def close(self) -> None:
        """Use and store no more denials. :meth:`take_sums` still returns the sums of those used before."""
        self._capacity = 0
        self._clients.clear()
        self._metrics.deny_entries = 0
