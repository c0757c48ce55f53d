"""A reservation for the time of a ``with`` block."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Literal, Self, TypeAlias

from stoplog.client.reservations import Reservation, Settled
from stoplog.errors import Denied, InvalidInput

OnError: TypeAlias = Literal["return", "charge"]
"""What a block that raises does with its reservation: ``return`` gives back all of it, ``charge`` charges it
as if the block had not raised."""


class Held:
    """The reservation of one ``with`` block (:meth:`stoplog.client.limiter.Limiter.reserve`).

    Args:
        opening: Opens the reservation.
        settle: Settles the reservation with this id, of which so much was used.
        cost: Units to hold.
        on_error: What to do with the reservation if the block raises.

    Attributes:
        used: Units to charge at the end of the block; ``None`` for all of the reservation.
        reservation: The answer of the store, once the block has begun.
        settled: What became of the reservation, after the block.
    """

    reservation: Reservation

    def __init__(
        self,
        opening: Callable[[], Awaitable[Reservation]],
        settle: Callable[[str, int], Awaitable[Settled]],
        cost: int,
        on_error: OnError,
    ) -> None:
        self.used: int | None = None
        self.settled: Settled | None = None
        self._opening = opening
        self._settle = settle
        self._cost = cost
        self._on_error = on_error

    async def open(self) -> None:
        """Open the reservation.

        Raises:
            Denied: It is denied.
            InvalidInput: An argument of it is invalid.
        """
        if self._on_error not in ("return", "charge"):
            raise InvalidInput("on_error", f"{self._on_error!r} is not an option", 'use "return" or "charge"')
        self.reservation = await self._opening()
        if not self.reservation.allowed:
            if self.reservation.id is not None:  # it failed closed, and may still be granted
                await self._settle(self.reservation.id, 0)
            raise Denied(self.reservation)

    async def close(self, *, failed: bool) -> None:
        """Settle the reservation. *failed* states whether the block has raised.

        Raises:
            InvalidInput: ``used`` is no whole number from 0 to 1,000,000. Nothing was settled.
        """
        if self.reservation.id is None:  # after a bug, nothing is held
            return
        used = self._cost if self.used is None else self.used
        if failed and self._on_error == "return":
            used = 0
        self.settled = await self._settle(self.reservation.id, used)

    async def __aenter__(self) -> Self:
        """Open the reservation, as :meth:`open` does."""
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Settle the reservation, as :meth:`close` does."""
        await self.close(failed=error is not None)
