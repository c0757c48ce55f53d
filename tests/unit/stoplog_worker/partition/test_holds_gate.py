"""Holds are enabled once every live worker of all lanes announces that it can read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stoplog_worker.algorithm.fold import fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.update_authority import UpdateAuthority
from stoplog_worker.partition.holds_gate import HoldsGate
from stoplog_worker.partition.live_workers import EXPIRY_S, LiveWorkers
from stoplog_worker.verify.replay import NothingStored

from stoplog.wire.checks import decode_checks_record
from stoplog.wire.heartbeats import Heartbeat, decode_heartbeat, encode_heartbeat
from stoplog.wire.limit_updates import Update, enabling_update
from tests.support.ledgers import FIRST_MARKER
from tests.support.old_release import OldRelease
from tests.support.relay import OLD, authority

FAULT = fault_finder(0, 1)


class Bench:
    """The gate of a partition, with the log in a list and a clock that the test sets."""

    def __init__(self, authority_: UpdateAuthority | None = None, key: str | None = None) -> None:
        self.now = 1_000.0
        self.authority = authority_ or authority()
        self.key = key
        self.ledger = Ledger(NothingStored(), FIRST_MARKER)
        self.workers = LiveWorkers("me@host")
        self.log: list[bytes] = []
        self.delivered: list[Callable[[Any, Any], None]] = []
        self.gate = HoldsGate(0, self.ledger, self.workers, self.send, self.authority, lambda: self.key)

    def send(self, value: bytes, _headers: Any, delivered: Callable[[Any, Any], None]) -> None:
        self.log.append(value)
        self.delivered.append(delivered)

    def turn(self, seconds: float = 1.0, *others: Heartbeat) -> None:
        """Let time pass. This worker and *others* send a heartbeat; the gate advances."""
        self.now += seconds
        for one in (worker("me@host"), *others):
            self.workers.on_heartbeat(one, self.now)
        self.gate.advance(self.now)

    def turns(self, *others: Heartbeat) -> None:
        for _ in range(int(EXPIRY_S) + 2):
            self.turn(1.0, *others)

    def fold_all(self) -> None:
        for value in self.log[self.ledger.next_offset :]:
            folded = fold(self.ledger, self.ledger.next_offset, 1_000, value, FAULT, self.authority)
            assert not folded.refused


def worker(node: str, *, holds: bool = True, lane: str = "a", role: str = "worker") -> Heartbeat:
    beat = Heartbeat(node, role, "0.3.0", "host", 0, lane=lane, holds=[])
    return beat if holds else decode_heartbeat(encode_heartbeat(beat).replace(b',"holds":[]', b""))


def test_gate_that_rests_sends_nothing_and_tells_whether_something_is_on_its_way() -> None:
    bench = Bench()
    while not bench.log:
        assert bench.gate.rest(bench.now - 10.0)
        bench.turn()
    assert not bench.gate.rest(bench.now)
    bench.delivered[0]("lost", None)
    for _ in range(5):
        assert bench.gate.rest(bench.now)
        bench.turn(1.0)
    assert len(bench.log) == 1
    bench.turn(3.0)
    assert len(bench.log) == 2, "it goes on by itself"


def test_gate_opens_when_this_worker_is_alone_and_has_waited_for_others() -> None:
    bench = Bench()
    for _ in range(int(EXPIRY_S)):
        bench.turn()
        assert not bench.log
    bench.turn()
    assert [decode_checks_record(value) for value in bench.log] == [enabling_update()]
    bench.turn()
    assert not bench.gate.open, "the record was not read yet"
    bench.fold_all()
    bench.delivered[0](None, None)
    bench.turn()
    assert bench.gate.open
    bench.turns()
    assert len(bench.log) == 1


@pytest.mark.parametrize("lane", ["a", "b"])
def test_gate_stays_closed_while_a_worker_of_any_lane_cannot_read_holds(
    lane: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "stoplog.holds")
    bench = Bench()
    old, new = worker("old@host", holds=False, lane=lane), worker("new@host")
    for _ in range(5):
        bench.turns(old, new)
        assert not bench.log
    [said] = caplog.messages
    assert said.endswith("will grant holds once these workers of an older release are upgraded: old@host")
    bench.turns(new)
    assert len(bench.log) == 1, "the old worker is gone"


def test_worker_of_an_earlier_release_keeps_the_gate_closed(tmp_path: Path) -> None:
    """The heartbeat is the one that the release itself encodes."""
    value = OldRelease("0.2.0", tmp_path).heartbeat("old@host")
    bench = Bench()
    bench.turns(decode_heartbeat(value))
    bench.turns(decode_heartbeat(value))
    assert not bench.log
    bench.turns()
    assert bench.log


def test_gateways_do_not_matter() -> None:
    bench = Bench()
    bench.turns(worker("gateway", holds=False, role="gateway"))
    assert bench.log


def test_record_that_was_lost_is_sent_again() -> None:
    bench = Bench()
    bench.turns()
    assert len(bench.log) == 1
    bench.log.clear()
    bench.delivered[0]("lost", None)
    bench.turn()
    assert len(bench.log) == 1


def test_gate_that_was_opened_by_another_owner_is_open() -> None:
    bench = Bench()
    bench.log.append(b"\x01U")  # no valid record
    bench.log.clear()
    bench.turns()
    bench.fold_all()
    again = HoldsGate(0, bench.ledger, LiveWorkers("me@host"), bench.send, bench.authority, lambda: None)
    again.advance(0.0)
    assert again.open


def test_update_is_signed_if_the_workers_have_a_key() -> None:
    keyed = Bench(authority(OLD), "old")
    keyed.turns()
    [value] = keyed.log
    update = decode_checks_record(value)
    assert isinstance(update, Update)
    assert update.signature is not None
    assert update.signature.key_id == "old"
    keyed.fold_all()
    assert keyed.ledger.signed_from == 0
    signed_only = Bench(authority(OLD))
    signed_only.ledger.signed_from = 0
    signed_only.turns()
    assert not signed_only.log, "an unsigned update would be refused"


def test_update_changes_no_version_and_is_applied_once() -> None:
    bench = Bench()
    bench.turns()
    bench.fold_all()
    assert bench.ledger.applied == -1
    bench.log.append(bench.log[0])
    folded = fold(bench.ledger, 1, 1_000, bench.log[1], FAULT, bench.authority)
    assert folded.effect is None
    assert not folded.refused
