"""A holder of leases, reduced to its rules: what it may admit, and what its records must say.

It keeps the rules of the lease cache without its economy: it asks whenever the test wants. A record's fate is
unknown until its reply arrives, so a used permit is reported again until the log has confirmed it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stoplog.wire.holds import LEASE, Ask, Grant, HoldId, Settlement

MARGIN_MS = 5


@dataclass
class Lease:
    """A lease that was accepted.

    Attributes:
        id: Its id.
        permits: Permits left.
        until: When it ends, by the holder's clock, ms.
        used: Permits used and not yet confirmed as settled.
        ended: Whether its permits were given back.
    """

    id: HoldId
    permits: int
    until: float
    used: int = 0
    ended: bool = False


@dataclass(frozen=True)
class SentAsk:
    """An ask whose reply has not arrived. ``settled`` are the permits that its record reports, by lease."""

    ask: Ask
    sent_at: float
    settled: tuple[tuple[HoldId, int], ...]


class Holder:
    """A process with leases of one client.

    Args:
        incarnation: Its incarnation.
        clock: Returns its own time, ms.
    """

    def __init__(self, incarnation: int, clock: Callable[[], float]) -> None:
        self.incarnation = incarnation
        self.leases: dict[HoldId, Lease] = {}
        self.number = 0
        self._clock = clock

    def admit(self) -> bool:
        """Use a permit, if there is one."""
        for lease in self.leases.values():
            if not lease.ended and lease.permits and self._clock() < lease.until:
                lease.permits -= 1
                lease.used += 1
                return True
        return False

    def ask(self, want: int, ttl_ms: int) -> tuple[SentAsk, tuple[Settlement, ...]]:
        """Return an ask for another lease, and the settlements in its record.

        Leases in use are settled in part. Leases whose permits were given back are settled for good. A lease
        is not named, and so closed, only if this record reports everything that was used of it.
        """
        self.number += 1
        settlements = [
            Settlement(lease.id, lease.used, not lease.ended)
            for lease in self.leases.values()
            if lease.used or lease.ended
        ]
        keep = tuple(lease.id for lease in self.leases.values() if not lease.ended)
        ask = Ask(LEASE, (self.incarnation, self.number, 0), self.number, want, ttl_ms, keep)
        settled = tuple((lease.id, lease.used) for lease in self.leases.values())
        return SentAsk(ask, self._clock(), settled), tuple(settlements)

    def answered(self, sent: SentAsk, grant: Grant | None) -> None:
        """Take the reply to an ask. The grant is accepted only if the ask is the latest."""
        for id_, used in sent.settled:
            if id_ in self.leases:
                self.leases[id_].used -= min(used, self.leases[id_].used)
        if grant is not None and sent.ask.number == self.number and sent.ask.id not in self.leases:
            until = sent.sent_at + grant.ttl_ms * 30 / 31 - MARGIN_MS
            self.leases[sent.ask.id] = Lease(sent.ask.id, grant.units, until)

    def give_back(self) -> tuple[Settlement, ...]:
        """Stop using all leases; return their settlements, for a record of their own."""
        settlements = []
        for lease in self.leases.values():
            if not lease.ended:
                lease.ended = True
                settlements.append(Settlement(lease.id, lease.used))
        return tuple(settlements)
