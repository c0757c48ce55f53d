"""A client with many holds costs its neighbors no more than one with few: the work is counted, not timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, Final

import pytest
from stoplog_worker.algorithm.fold import fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.verify.replay import NothingStored

from stoplog.policy import parse_policy
from stoplog.wire.checks import Batch, Check, encode_batch, encode_settlements, encode_update
from stoplog.wire.holds import (
    LEASE,
    MAX_LEASES,
    MAX_RESERVATIONS,
    MAX_SETTLED,
    RESERVATION,
    Ask,
    HoldId,
    HoldRow,
    Settlement,
    SettlementBatch,
    SettlementRow,
)
from stoplog.wire.limit_updates import enabling_update

START: Final = 1_764_000_000_000
FEW: Final = 10
MANY: Final = MAX_RESERVATIONS - 1
UNITS: Final = 10
LIMIT: Final = 100_000
FAULT: Final = fault_finder(0, 1)
LATEST: Final = 3_600_000


class Client:
    """A client with open reservations, whose ends are in no order."""

    def __init__(self, holds: int, *limits: str) -> None:
        default = parse_policy([f"{LIMIT}/hour", *limits])
        self.ledger = Ledger(NothingStored(), Marker(0, 0, -1, -1, "", default))
        self.holds, self.offset, self.after_ms = holds, 0, 0
        self.append(encode_update(enabling_update()))
        for number in range(holds):
            self.check(UNITS, Ask(RESERVATION, own(number), 0, 0, 1 + number * 7_919 % LATEST))

    def append(self, value: bytes) -> list[Any]:
        found = fold(self.ledger, self.offset, START + self.after_ms, value, FAULT)
        self.offset += 1
        return [*found.answers, *found.settled]

    def check(self, cost: int, ask: Ask | None = None) -> Any:
        rows = [] if ask is None else [HoldRow(0, ask)]
        [answer] = self.append(encode_batch(Batch(0, 7, 1, [Check("a", cost)], rows)))
        return answer


def own(number: int) -> HoldId:
    return (9, number, 0)


def lines_run(action: Callable[[], object]) -> int:
    """Return how many lines of Python *action* runs."""
    lines = 0

    def trace(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return lines


def allowed(client: Client) -> None:
    assert client.check(1).allowed


def denied_by_holds(client: Client) -> None:
    found = client.check(LIMIT - client.holds * UNITS // 2)
    assert (found.allowed, found.firm_ms) == (False, 0)
    assert found.retry_after_ms > 0


def opened(client: Client) -> None:
    assert client.check(1, Ask(RESERVATION, own(5_000), 0, 0, 5_000)).grant is not None


def settled(client: Client) -> None:
    row = SettlementRow("a", "", (Settlement(own(client.holds // 2), 1),))
    assert client.append(encode_settlements(SettlementBatch(-1, 7, 1, [row]))) == [(-1,)]


def leased(client: Client) -> None:
    assert client.check(0, Ask(LEASE, (5, 1, 0), 1, 4, 5_000)).grant is not None


def looked_up(client: Client) -> None:
    window = client.ledger.usage_report(Check("a", 0))["windows"][0]
    assert window["used"] == client.holds * UNITS


@pytest.mark.parametrize("action", [allowed, denied_by_holds, opened, settled, leased, looked_up])
def test_work_does_not_grow_with_the_number_of_holds(action: Callable[[Client], None]) -> None:
    few, many = (lines_run(partial(action, Client(holds))) for holds in (FEW, MANY))
    assert many < few * 1.5


def test_work_of_a_denial_by_requests_in_flight_does_not_grow() -> None:
    def denied(client: Client) -> None:
        found = client.check(1, Ask(RESERVATION, own(5_000), 0, 0, 5_000))
        assert found.reason.startswith(f"{client.holds:,} reservations are open")

    clients = [Client(holds, f"{holds} in flight") for holds in (FEW, MANY)]
    few, many = (lines_run(partial(denied, client)) for client in clients)
    assert many < few * 1.5


def test_ask_that_names_many_leases_looks_at_each_once() -> None:
    client = Client(0)
    for number in range(1, MAX_LEASES + 1):
        kept = tuple((5, one, 0) for one in range(1, number))
        assert client.check(0, Ask(LEASE, (5, number, 0), number, 4, 5_000, kept)).grant is not None
    others = tuple((6, one, 0) for one in range(MAX_LEASES))
    late = Ask(LEASE, (5, 0, 1), 0, 4, 5_000, others)
    assert lines_run(lambda: client.check(0, late)) < 10 * MAX_LEASES
    closing = Ask(LEASE, (5, 1_000, 0), 1_000, 4, 5_000, others)
    assert lines_run(lambda: client.check(0, closing)) < 30 * MAX_LEASES
    assert len(client.ledger.states["a"].holds or ()) == 1


def test_work_of_many_settlements_in_a_record_grows_with_their_number_only() -> None:
    per_settlement = []
    for holds in (FEW, MANY):
        client = Client(holds)
        row = SettlementRow("a", "", tuple(Settlement(own(number), 1) for number in range(holds)))
        # The second row finds the reservations settled, or forgotten.
        value = encode_settlements(SettlementBatch(-1, 7, 1, [row, row]))
        per_settlement.append(lines_run(partial(client.append, value)) / holds)
        assert len(client.ledger.states["a"].holds or ()) == min(holds, MAX_SETTLED)
    assert per_settlement[1] < per_settlement[0] * 1.5


def test_work_of_many_asks_and_settlements_for_one_client_grows_with_their_number_only() -> None:
    per_row = []
    for count in (FEW, MANY):
        client = Client(0)
        rows = [
            HoldRow(
                number,
                Ask(RESERVATION, own(number), 0, 0, 1 + number * 7_919 % LATEST),
                (Settlement(own(number // 2), 1, True),),
            )
            for number in range(count)
        ]
        value = encode_batch(Batch(0, 7, 1, [Check("a", UNITS)] * count, rows))
        per_row.append(lines_run(partial(client.append, value)) / count)
        assert len(client.ledger.states["a"].holds or ()) == count
    assert per_row[1] < per_row[0] * 1.5


def test_end_of_many_holds_is_work_for_each_of_them_once() -> None:
    per_hold = []
    for holds in (FEW, MANY):
        client = Client(holds)
        client.after_ms = LATEST
        per_hold.append(lines_run(partial(client.check, 0)) / holds)
        assert client.ledger.states["a"].holds is None
    assert per_hold[1] < per_hold[0] * 1.5
