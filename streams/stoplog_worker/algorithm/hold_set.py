"""The holds of one client, in memory. Pure: no clock, no I/O, integers only.

A client may have more than 1,000 holds. A check must not look at each of them: its neighbors in the partition
would wait. So a :class:`HoldSet` keeps the sums and the orders that decisions need. Lists are sorted, and an
entry is found by bisection. Moving the entries behind it takes less than a microsecond in a list of that
length.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from stoplog.wire.holds import LEASE, RESERVATION, HoldId

SETTLED: Final = 2
"""Kind of a reservation that was settled. It holds nothing, and is remembered until it would have ended."""

REFUNDED: Final = 3
"""Kind of a refund that was made. It holds nothing. Its id is remembered for the longest window."""


class Hold(msgspec.Struct, frozen=True, array_like=True):
    """Units that were granted and are not spent yet. They count in every window until the hold ends.

    Attributes:
        id: The id that the holder chose.
        kind: :data:`stoplog.wire.holds.LEASE`, :data:`stoplog.wire.holds.RESERVATION`, :data:`SETTLED` or
            :data:`REFUNDED`.
        ask: Number of the ask for a lease; it rises for each holder. Of a settled reservation, the units that
            were used; of an open one, 0. Of a refund, the units that it returned.
        end_ms: Partition time at which the hold ends. All its units are charged then.
        units: Units held; 0 for a settled reservation and for a refund.
    """

    id: HoldId
    kind: int
    ask: int
    end_ms: int
    units: int


class HoldSet:
    """Holds with different ids. Iteration yields them in the order in which they were added.

    Args:
        holds: The first holds, oldest first. Of two with the same id, the last one counts.

    Attributes:
        units: The units of all holds.
        leases: The leases.
    """

    __slots__ = (
        "_by_id",
        "_charges",
        "_ends",
        "_refunds",
        "_reservations",
        "_settled",
        "_units",
        "leases",
        "units",
    )

    def __init__(self, holds: Iterable[Hold] = ()) -> None:
        # A state that is loaded may have 1,000: sorting takes half of the time of adding one after the other.
        by_id = self._by_id = {hold.id: hold for hold in holds}
        self._ends = sorted([(hold.end_ms, id_) for id_, hold in by_id.items()])
        """End and id of every hold, sorted."""
        self._charges = [end for end in self._ends if by_id[end[1]].units]
        """The same for the holds with units, which are charged at their ends;"""
        self._units = [by_id[id_].units for _, id_ in self._charges]
        """and their units, in the same order."""
        self._reservations = [end_ms for end_ms, id_ in self._ends if by_id[id_].kind == RESERVATION]
        """The ends of the open reservations, sorted."""
        self._settled = [id_ for id_, hold in by_id.items() if hold.kind == SETTLED]
        """The settled reservations, the one settled first at the beginning."""
        self._refunds = [id_ for id_, hold in by_id.items() if hold.kind == REFUNDED]
        """The refunds, the first one at the beginning."""
        self.leases = [hold for hold in by_id.values() if hold.kind == LEASE]
        self.units = sum(self._units)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Hold]:
        return iter(self._by_id.values())

    def get(self, id_: HoldId) -> Hold | None:
        """Return the hold with this id, which is open, a settled reservation, or a refund."""
        return self._by_id.get(id_)

    # --- changes ---

    def add(self, hold: Hold) -> None:
        """Add *hold* as the newest one. It takes the place of a hold with the same id."""
        if hold.id in self._by_id:
            self.remove(hold.id)
        self._by_id[hold.id] = hold
        end = hold.end_ms, hold.id
        insort(self._ends, end)
        if hold.units:
            self._add_units(end, hold.units)
        if hold.kind == RESERVATION:
            insort(self._reservations, hold.end_ms)
        elif hold.kind == LEASE:
            self.leases.append(hold)
        elif hold.kind == SETTLED:
            self._settled.append(hold.id)
        elif hold.kind == REFUNDED:
            self._refunds.append(hold.id)

    def remove(self, id_: HoldId) -> Hold:
        """Remove the hold with this id, and return it.

        Raises:
            KeyError: There is none.
        """
        hold = self._by_id.pop(id_)
        end = hold.end_ms, id_
        del self._ends[bisect_left(self._ends, end)]
        if hold.units:
            self._remove_units(end, hold.units)
        if hold.kind == RESERVATION:
            del self._reservations[bisect_left(self._reservations, hold.end_ms)]
        elif hold.kind == LEASE:
            self.leases.remove(hold)
        elif hold.kind == SETTLED:
            self._settled.remove(id_)
        elif hold.kind == REFUNDED:
            self._refunds.remove(id_)
        return hold

    def shrink(self, id_: HoldId, units: int) -> None:
        """Leave *units* to the hold with this id, which keeps its place.

        Raises:
            KeyError: There is none.
        """
        hold = self._by_id[id_]
        left = self._by_id[id_] = Hold(id_, hold.kind, hold.ask, hold.end_ms, units)
        end = hold.end_ms, id_
        if hold.units:
            self._remove_units(end, hold.units)
        if units:
            self._add_units(end, units)
        if hold.kind == LEASE:
            self.leases[self.leases.index(hold)] = left

    def _add_units(self, end: tuple[int, HoldId], units: int) -> None:
        index = bisect_left(self._charges, end)
        self._charges.insert(index, end)
        self._units.insert(index, units)
        self.units += units

    def _remove_units(self, end: tuple[int, HoldId], units: int) -> None:
        index = bisect_left(self._charges, end)
        del self._charges[index], self._units[index]
        self.units -= units

    def remove_ended(self, now_ms: int) -> list[Hold]:
        """Remove the holds that have ended by *now_ms*; return them by their ends, then by their ids."""
        ended = []
        while self._ends and self._ends[0][0] <= now_ms:
            ended.append(self.remove(self._ends[0][1]))
        return ended

    def forget_settled(self, most: int) -> None:
        """Remove the reservations that were settled first until at most *most* settled ones are left."""
        while len(self._settled) > most:
            self.remove(self._settled[0])

    def forget_refunds(self, most: int) -> None:
        """Remove the first refunds until at most *most* are left."""
        while len(self._refunds) > most:
            self.remove(self._refunds[0])

    def keep_refunds(self, until_ms: int) -> None:
        """Have all refunds end at *until_ms* at the earliest. They keep their places."""
        for id_ in self._refunds:
            hold = self._by_id[id_]
            if hold.end_ms < until_ms:
                del self._ends[bisect_left(self._ends, (hold.end_ms, id_))]
                insort(self._ends, (until_ms, id_))
                self._by_id[id_] = Hold(id_, hold.kind, hold.ask, until_ms, hold.units)

    # --- what decisions need ---

    @property
    def open(self) -> int:
        """How many holds are open: all but the settled reservations and the refunds."""
        return len(self._by_id) - len(self._settled) - len(self._refunds)

    @property
    def reservations(self) -> int:
        """How many reservations are open."""
        return len(self._reservations)

    def reservation_ends_ms(self, index: int) -> int:
        """Return when an open reservation ends, as the *index*-th one from 0."""
        return self._reservations[index]

    def charged_last_ms(self) -> int:
        """Return when the last of the units will be charged if nothing is settled. There are some."""
        return self._charges[-1][0]

    def charged_ms(self, units: int) -> int:
        """Return when at least *units* (1 to :attr:`units`) will have been charged if nothing is settled."""
        first, beyond = 0, len(self._units)
        while beyond - first > 1:
            middle = (first + beyond) // 2
            # In all, this adds up every number about once, at some nanoseconds each.
            before = sum(self._units[first:middle])
            if before >= units:
                beyond = middle
            else:
                units -= before
                first = middle
        return self._charges[first][0]
