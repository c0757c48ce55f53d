"""Denials that still hold, so that a flood from one client need not reach the log. Pure: no Kafka.

A denial says when the same check would pass if nothing more were charged. What is charged meanwhile only puts
that off, so until then the log denies every check of the client (under the same plan, to the same resource)
that costs as much or more, unless a limit update comes between: a policy, a plan, the default, a reset.
Hence three conditions, by which a denial is given only where the log would have denied:

- *Time.* A denial holds from the *sending* of its check, which was not later than partition time at its
  record, for a little less than it says (:data:`MARGIN`) and never longer than :data:`MAX_HOLD_S`.
- *Updates.* An update that is heard of in ``limit-updates`` has all forgotten that it may touch. A denial is
  kept only if its reply had applied all that was heard of: none from before an update is kept after it.
- *Proof.* A denial is given only while it is proven that all updates written more than :data:`PROOF_S` ago
  were heard of (:mod:`stoplog.client.limit_update_follower`); who cannot read the updates has no proof.

So a denial given at an instant is right for the log as it was at some instant of the last ``PROOF_S``; and
because a change of limits is confirmed only ``PROOF_S`` after it was applied, whoever asks after the
confirmation, at whichever gateway, is answered by the new limits.
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
"""How old a proof may be. A change waits as long to be confirmed. Half of it would do for an idle gateway;
one at its core's limit comes to its next proof late, and would ask for one check in 300 in between."""

MAX_HOLD_S: Final = 60.0
"""What a denial is worth at most, one that only an update can end too: it bounds what a broker's clock that
jumps ahead (and frees windows early) can make wrong, and costs one check a minute."""

MARGIN: Final = 61
"""A denial is held for one part in this many less than it says: clocks may differ in rate, and charges in a
window that another plan does not ask for are kept for the window, not for the last tick's rest (1/60)."""

KEEN_S: Final = 1.0
"""Proof is asked for until this long after the last check that it might have served."""

MAX_ROWS: Final = 1_000
"""Sums in one record: at most 800 bytes each, with three ids of 256 bytes."""


class _Partition:
    """What is known of one partition's updates, and whether denials that refer to it are proven.

    ``heard``: the last update heard of. ``proven_until``: see :data:`PROOF_S`; -inf before the first proof.
    """

    __slots__ = ("heard", "index", "proven_until")

    def __init__(self, index: int, heard: int = -1, proven_until: float = -inf) -> None:
        self.index = index
        self.heard = heard
        self.proven_until = proven_until


class _Denial:
    """A denial of *check*, and what was answered by it: ``checks``, and ``spent``, their costs in all."""

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
        """What the log would say at *now*, but that a higher cost may have to wait for longer."""
        decision, ago_ms = self.decision, int((now - self.sent_at) * 1_000)
        limit, wait_ms = decision.limit, decision.retry_after_ms
        if wait_ms is not None:
            wait_ms = None if limit is not None and cost > limit else wait_ms - ago_ms
        left_ms = max(0, decision.reset_after_ms - ago_ms)
        return Answer(False, limit, decision.remaining, left_ms, wait_ms, decision.policy_version)


class DenyCache:
    """The denials that one gateway remembers; of its event loop alone.

    Args:
        metrics: Counts what is stored and given.
        partitions: Of ``checks``.
        capacity: Denials at most; beyond it those stored first are dropped. 0: none.
        clock: Seconds, monotonic; the one by which checks' sending and proofs are timed.
    """

    def __init__(self, metrics: Metrics, partitions: int, capacity: int, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._capacity = capacity
        self._clock = clock
        self._partitions = [_Partition(index) for index in range(partitions)]
        self._clients: dict[str, dict[tuple[str, str], _Denial]] = {}
        self._given: list[_Denial] = []  # those with something to sum up
        self._wanted_at = -inf

    def get(self, check: Check) -> Answer | None:
        """The denial of *check* if the log is known to deny it; ``None``: ask."""
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
            self._given.append(denial)
        denial.checks += 1
        denial.spent += check.cost
        metrics = self._metrics
        metrics.received += 1
        metrics.rejected += 1
        metrics.deny_hits += 1
        metrics.latency.observe(0.0)
        return denial.answer(check.cost, now)

    def learn(self, partition: int, checks: Sequence[Check], reply: Reply, sent_at: float) -> None:
        """Keep the denials among the answers to *checks*, a batch of *partition* sent at *sent_at*."""
        for check, answer in zip(checks, reply.answers, strict=False):
            if type(answer) is Decision and not answer.allowed and check.cost:
                self._keep(partition, check, answer, reply.applied, sent_at)

    def _keep(self, partition: int, check: Check, decision: Decision, applied: int, sent_at: float) -> None:
        home, now = self._partitions[partition], self._clock()
        self._wanted_at = now
        if applied < home.heard or home.proven_until == -inf or not self._capacity:
            return
        denial = _Denial(check, decision, home, sent_at)
        if now >= denial.until:
            return
        denials = self._clients.pop(check.client, {})
        self._clients[check.client] = denials  # the youngest
        key = check.plan, check.resource
        other = denials.get(key)
        if other is None:
            self._metrics.deny_entries += 1
        elif other.home is home and other.check.cost < check.cost and now < other.until:
            return  # it serves this cost, and lower ones
        denials[key] = denial
        self._metrics.deny_stores += 1
        while self._metrics.deny_entries > self._capacity:
            self._forget(next(iter(self._clients)))

    def heard(self, partition: int, update: UpdateKey, version: int) -> None:
        """An update stands in ``limit-updates[partition]`` at offset *version*, applied or not."""
        home = self._partitions[partition]
        home.heard = version
        if update.kind in ("client", "reset"):
            self._forget(update.id)
        else:
            # Denials refer to the one they were kept under: none of them is ever proven again.
            self._partitions[partition] = _Partition(partition, version, home.proven_until)
            home.proven_until = -inf

    def _forget(self, client: str) -> None:
        self._metrics.deny_entries -= len(self._clients.pop(client, ()))

    def proven(self, partitions: Sequence[int], at: float) -> None:
        """All updates of *partitions* that were written before *at* have been heard of."""
        for partition in partitions:
            self._partitions[partition].proven_until = at + PROOF_S

    @property
    def wants_proof(self) -> bool:
        """Whether a proof would be of use; the only thing here that any thread may ask."""
        return self._clock() - self._wanted_at < KEEN_S

    def take_sums(self) -> list[tuple[int, list[Denied]]]:
        """What was denied since the last call, by partition, at most :data:`MAX_ROWS` rows at a time."""
        rows: list[list[Denied]] = [[] for _ in self._partitions]
        for denial in self._given:
            check = denial.check
            row = Denied(check.client, check.plan, check.resource, denial.checks, denial.spent)
            rows[denial.home.index].append(row)
            denial.checks = denial.spent = 0
        self._given.clear()
        return [
            (partition, of_it[at : at + MAX_ROWS])
            for partition, of_it in enumerate(rows)
            for at in range(0, len(of_it), MAX_ROWS)
        ]

    def close(self) -> None:
        """Give and keep no more denials; what was given can still be summed up."""
        self._capacity = 0
        self._clients.clear()
        self._metrics.deny_entries = 0
