"""A worker signs with a relay key that every live worker announced."""

from __future__ import annotations

from typing import Any

import pytest
from stoplog_worker.algorithm.relay_keys import parse_relay_keys
from stoplog_worker.partition.key_agreement import KeyAgreement
from stoplog_worker.partition.live_workers import EXPIRY_S, LiveWorkers

from stoplog.wire.heartbeats import Heartbeat, decode_heartbeat
from tests.support.relay import NEW, OLD, OTHER

NOW = 1_000.0


class Workers:
    """This worker with keys, and the heartbeats of others."""

    def __init__(self, *keys: str) -> None:
        self.keys = parse_relay_keys(",".join(keys))
        self.forget()
        for seconds in range(int(EXPIRY_S), -1, -2):
            self.hear("me@host", at=NOW - seconds)

    def forget(self) -> None:
        """Start again, without heartbeats."""
        self.live = LiveWorkers("me@host")
        self.agreement = KeyAgreement(self.keys, self.live)

    def hear(self, node: str, *keys: str, at: float = NOW, **fields: Any) -> None:
        announced = list(parse_relay_keys(",".join(keys)).announced.values())
        beat = Heartbeat(node, "worker", "0.3.0", "host", 0, relay_keys=announced, **fields)
        self.live.on_heartbeat(beat, at)

    def key(self, now: float = NOW) -> str | None:
        self.hear("me@host", at=now)
        return self.agreement.signing_key(now)


def test_first_own_key_that_all_workers_announce_signs() -> None:
    workers = Workers(NEW, OLD)
    assert workers.key() == "new"
    workers.hear("other@host", OLD, NEW)
    assert workers.key() == "new"
    workers.hear("third@host", OLD, lane="b")
    assert workers.key() == "old"


def test_no_key_signs_while_a_live_worker_has_none_of_them(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers(NEW, OLD)
    workers.hear("other@host", OTHER)
    assert workers.key() is None
    assert "other@host lack some of new, old" in caplog.text
    for seconds in (2.0, 4.0, EXPIRY_S - 0.1):
        assert workers.key(NOW + seconds) is None
    assert workers.key(NOW + EXPIRY_S) == "new", "the other is gone"


def test_worker_of_the_earlier_release_announces_no_keys() -> None:
    workers = Workers(OLD)
    value = b'{"id": "w@h", "role": "worker", "version": "0.2.0", "host": "h", "at_ms": 0, "lane": "a"}'
    workers.live.on_heartbeat(decode_heartbeat(value), NOW)
    assert workers.key() is None


def test_worker_that_stops_no_longer_matters() -> None:
    workers = Workers(OLD)
    workers.hear("other@host")
    assert workers.key() is None
    workers.hear("other@host", stopping=True)
    assert workers.key() == "old"


def test_own_heartbeats_and_those_of_gateways_do_not_matter() -> None:
    workers = Workers(OLD)
    workers.hear("me@host")
    workers.live.on_heartbeat(Heartbeat("g", "gateway", "0.3.0", "host", 0), NOW)
    assert workers.key() == "old"


def test_another_key_under_the_same_id_is_another_key() -> None:
    workers = Workers(OLD)
    workers.hear("other@host", "old:" + "44" * 32)
    assert workers.key() is None


def test_no_key_signs_before_all_workers_can_have_been_heard() -> None:
    workers = Workers(OLD)
    workers.forget()
    assert workers.agreement.signing_key(NOW) is None
    for seconds in (0.0, 2.0, 4.0, EXPIRY_S - 0.1):
        assert workers.key(NOW + seconds) is None
    assert workers.key(NOW + EXPIRY_S) == "old"


def test_no_key_signs_while_this_worker_receives_no_heartbeats() -> None:
    workers = Workers(OLD)
    assert workers.key() == "old"
    assert workers.agreement.signing_key(NOW + EXPIRY_S) is None, "not even its own"
    for seconds in (8.0, 10.0, 12.0):
        assert workers.key(NOW + seconds) is None, "others may have started meanwhile"
    assert workers.key(NOW + 8 + EXPIRY_S) == "old"


def test_worker_that_never_receives_its_own_heartbeats_says_why_changes_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agreement = KeyAgreement(parse_relay_keys(OLD), LiveWorkers("me@host"))
    for seconds in (0.0, EXPIRY_S, 2 * EXPIRY_S):
        assert agreement.signing_key(NOW + seconds) is None
    assert not caplog.text, "it may have just started"
    for seconds in (2.1 * EXPIRY_S, 3 * EXPIRY_S):
        assert agreement.signing_key(NOW + seconds) is None
    [record] = caplog.records
    assert "not received its own heartbeats from nodes for 13 s: check that it may" in record.getMessage()


def test_worker_without_keys_signs_nothing() -> None:
    assert Workers().key() is None


def test_dead_workers_take_no_memory() -> None:
    workers = Workers(OLD)
    for number in range(100):
        workers.hear(f"w{number}@host", at=NOW + number * EXPIRY_S)
    assert len(workers.live._heard) == 1
