"""The block of a reservation: what it charges, and when it does not run."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from stoplog.client.held import Held
from stoplog.client.reservations import Reservation, Settled
from stoplog.errors import Denied, InvalidInput

GRANTED = Reservation(True, 100, 60, 60_000, 0, 3, id="id", held=40, ttl_ms=5_000)
DENIED = Reservation(False, 100, 3, 60_000, 4_000, 3)
CLOSED = Reservation(False, None, None, 0, 1_000, -1, True, "deadline", id="id")


class Desk:
    """Opens one reservation, and notes how it was settled."""

    def __init__(self, answer: Reservation = GRANTED) -> None:
        self.answer = answer
        self.opened = 0
        self.settled: list[tuple[str, int]] = []

    async def open(self) -> Reservation:
        self.opened += 1
        return self.answer

    async def settle(self, id_: str, used: int) -> Settled:
        self.settled.append((id_, used))
        return Settled(id_, "settled", used)

    def held(self, on_error: Any = "return") -> Held:
        return Held(self.open, self.settle, 40, on_error)


@pytest.mark.parametrize(("used", "charged"), [(None, 40), (0, 0), (13, 13), (90, 90)])
async def test_block_charges_what_it_used_or_everything(used: int | None, charged: int) -> None:
    desk = Desk()
    async with desk.held() as held:
        held.used = used
        assert held.reservation is GRANTED
        assert not desk.settled
    assert desk.settled == [("id", charged)]
    assert held.settled == Settled("id", "settled", charged)


@pytest.mark.parametrize(
    ("on_error", "used", "charged"), [("return", 13, 0), ("charge", 13, 13), ("charge", None, 40)]
)
async def test_block_that_raises_charges_nothing_unless_told_otherwise(
    on_error: str, used: int | None, charged: int
) -> None:
    desk = Desk()
    with suppress(ZeroDivisionError):
        async with desk.held(on_error) as held:
            held.used = used
            raise ZeroDivisionError
        pytest.fail("the error is lost")
    assert desk.settled == [("id", charged)]


async def test_denied_block_does_not_run_and_settles_nothing() -> None:
    desk = Desk(DENIED)
    with pytest.raises(Denied, match="do not allow it now; try again in 4,000 ms") as caught:
        async with desk.held():
            pytest.fail("it runs")
    assert caught.value.reservation is DENIED
    assert not desk.settled


async def test_block_that_fails_closed_gives_back_what_may_still_be_granted() -> None:
    desk = Desk(CLOSED)
    with pytest.raises(
        Denied, match=r"did not decide it \(deadline\), so it fails closed; try again in 1,000 ms"
    ):
        async with desk.held():
            pytest.fail("it runs")
    assert desk.settled == [("id", 0)]


async def test_block_whose_reservation_has_no_id_settles_nothing() -> None:
    desk = Desk(Reservation(True, None, None, 0, 0, -1, True, "internal_error"))
    async with desk.held():
        pass
    assert not desk.settled


async def test_unknown_value_of_on_error_is_refused_before_anything_is_held() -> None:
    desk = Desk()
    with pytest.raises(InvalidInput, match="on_error: 'ignore' is not an option; use \"return\" or"):
        async with desk.held("ignore"):
            pytest.fail("it runs")
    assert not desk.opened
