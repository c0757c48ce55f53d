"""What holders of leases admitted, compared with the log: the permits of each client, and its limits."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

from stoplog_worker.algorithm.fold import Answer
from stoplog_worker.verify.replay import Record

from stoplog.policy import Policy
from stoplog.wire.checks import Batch, decode_checks_record
from stoplog.wire.holds import HoldId, Settlement, SettlementBatch
from stoplog.wire.limit_updates import Update
from stoplog.wire.replies import Decision, HeldDecision
from tests.support.faults.load import SentCheck

Shown: TypeAlias = tuple[Any, ...]
"""The fields of a decision, as an answer shows them."""

_REMAINING: Final = Decision.__struct_fields__.index("remaining")


def permits(records: Iterable[Record], decided: dict[int, list[Answer]]) -> Counter[str]:
    """Return for each client how many permits of its leases can have been used, by the log of a partition.

    All permits that were granted count, except those that the last settlement of a lease gives back.
    """
    found: Counter[str] = Counter()
    left: dict[HoldId, int] = {}

    def settle(client: str, settlements: Iterable[Settlement]) -> None:
        for one in settlements:
            if one.id in left:
                left[one.id] -= one.used
                if not one.partial:
                    found[client] -= left.pop(one.id)

    for record in records:
        content = decode_checks_record(record.value)
        if isinstance(content, SettlementBatch):
            for settled in content.rows:
                settle(settled.client, settled.settlements)
        elif isinstance(content, Batch):
            for row in content.hold_rows or ():
                client, answer = content.checks[row.index].client, decided[record.offset][row.index]
                settle(client, row.settlements)
                if row.ask is not None and isinstance(answer, HeldDecision) and answer.grant is not None:
                    left[row.ask.id] = answer.grant.units
                    found[client] += answer.grant.units
    return found


def without_decision(answers: Counter[Shown], decisions: Counter[Shown]) -> Counter[Shown]:
    """Return the answers to a client that no decision in the log accounts for. Each accounts for one answer.

    A gateway adds the permits that it holds to the ``remaining`` of a decision that allows
    (:meth:`stoplog.client.lease_cache.LeaseCache.show`). So an answer may leave more than its decision does,
    if all else is equal.
    """
    extra = answers - decisions
    lowest: dict[Shown, list[int]] = defaultdict(list)
    for shown in sorted((decisions - answers).elements(), key=_remaining, reverse=True):
        lowest[_without_remaining(shown)].append(_remaining(shown))
    for shown in sorted(extra.elements(), key=_remaining):
        left = lowest.get(_without_remaining(shown))
        if shown[0] and left and left[-1] <= _remaining(shown):
            left.pop()
            extra[shown] -= 1
    return +extra


def _remaining(shown: Shown) -> int:
    return -1 if shown[_REMAINING] is None else int(shown[_REMAINING])


def _without_remaining(shown: Shown) -> Shown:
    return (*shown[:_REMAINING], *shown[_REMAINING + 1 :])


def check_windows(
    records: Iterable[Record],
    default: Policy,
    sent: Sequence[SentCheck],
    copied: Iterable[tuple[tuple[str, int], Policy]] = (),
) -> int:
    """Check by the times of requests and answers that no interval admitted more than the limit.

    A check that was sent and answered within an interval was admitted within it, by whichever gateway. Each
    policy of a client is checked by itself. Clients that were reset are left out. So is a version that names
    different policies before and after the client moved to a partition that was split off.

    Args:
        records: The log of all partitions.
        default: The policy of clients without another.
        sent: The checks.
        copied: The limits of clients with which partitions that were split off began, by client and version.

    Returns:
        How many admissions were checked.
    """
    policies: dict[tuple[str, int], Policy | None] = {}
    reset, ambiguous = set(), set()

    def note(version: tuple[str, int], policy: Policy | None) -> None:
        if policies.setdefault(version, policy) != policy:
            ambiguous.add(version)

    for version, policy in copied:
        note(version, policy)
    for record in records:
        content = decode_checks_record(record.value)
        if isinstance(content, Update) and content.kind == "client":
            note((content.id, content.version), content.policy)
        elif isinstance(content, Update) and content.kind == "reset":
            reset.add(content.id)
    admitted: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for one in sent:
        answer: dict[str, Any] | None = one.answer if one.decided else None
        if answer is not None and answer["allowed"] and one.client not in reset:
            admitted[one.client, answer["policy_version"]].append((one.sent_at, one.ended_at))
    for version in ambiguous:
        admitted.pop(version, None)
    for (client, number), times in admitted.items():
        applied = default if number < 0 else policies[client, number]
        times.sort()
        for limit in applied.limits if applied is not None else ():
            for first, (began, _) in enumerate(times):
                end = began + limit.window_ms / 1_000
                last = bisect_right(times, (end, 0.0))
                within = sum(ended <= end for _, ended in times[first:last])
                assert within <= limit.max, f"{client} was admitted {within} times in a window of {limit}"
    return sum(map(len, admitted.values()))
