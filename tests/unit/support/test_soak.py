"""The parts of the soak that need no system: its order, its relay keys, and its half-open connections."""

from __future__ import annotations

import socket
from itertools import islice

import pytest
from stoplog_worker.algorithm.relay_keys import parse_relay_keys

from stoplog.policy import UNLIMITED
from stoplog.wire.checks import Batch, Check, encode_batch, encode_update
from stoplog.wire.limit_updates import Update
from tests.support.faults.oracle import WatchfulAuthority, last_signer
from tests.support.faults.random_rounds import random_rounds
from tests.support.faults.relay_rotation import rotation
from tests.support.half_open import BEGINNINGS, half_open
from tests.support.relay import CHECKS_ID, NEW, OLD, UPDATES_ID, authority

UPDATE = Update(7, "client", "alice", "", UNLIMITED)


def test_rounds_contain_everything_once_and_differ() -> None:
    items = list(range(20))
    drawn = list(islice(random_rounds(items, seed=1), 40))
    first, second = drawn[:20], drawn[20:]
    assert sorted(first) == sorted(second) == items
    assert first != second
    assert list(islice(random_rounds(items, seed=1), 40)) == drawn
    assert list(islice(random_rounds(items, seed=2), 40)) != drawn


def test_rotation_is_accepted_by_all_before_it_signs_and_keeps_old_keys() -> None:
    [[first]] = rotation([])
    accept, sign = rotation([first])
    assert accept[0] == first
    assert sign == accept[::-1]
    later_accept, later_sign = rotation(sign)
    assert later_accept[:2] == sign
    assert later_sign[0] == later_accept[-1]
    assert set(later_sign) > set(sign)
    assert len(parse_relay_keys(",".join(later_sign)).announced) == 3


def test_last_signer_is_that_of_the_last_update() -> None:
    checks = encode_batch(Batch(0, 7, 1, [Check("alice")]))
    signed = encode_update(authority(OLD).sign(UPDATE, "old"))
    unsigned = encode_update(UPDATE)
    assert last_signer([checks, signed, unsigned]) == "old"
    assert last_signer([checks, unsigned, signed]) is None
    assert last_signer([checks]) is None


def test_oracle_reports_a_refused_update_as_lost_until_it_is_accepted() -> None:
    signed = authority(OLD).sign(UPDATE, "old")
    oracle = WatchfulAuthority(parse_relay_keys(OLD), CHECKS_ID, UPDATES_ID, 0)
    assert oracle.refusal(UPDATE, -1, signed_before=True) is not None
    assert oracle.lost == {7}
    assert oracle.refusal(signed, -1, signed_before=True) is None
    assert not oracle.lost


def test_oracle_fails_at_an_update_that_no_worker_wrote() -> None:
    oracle = WatchfulAuthority(parse_relay_keys(OLD), CHECKS_ID, UPDATES_ID, 0)
    impossible = Update(2**40, "client", "alice", "", UNLIMITED)
    for refused in (authority(NEW).sign(UPDATE, "new"), impossible):
        with pytest.raises(AssertionError, match=f"'alice', version {refused.version}: "):
            oracle.refusal(refused, -1, signed_before=False)


def test_half_open_connections_stay_open_during_the_block() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        with half_open(server.getsockname(), 4):
            accepted = [server.accept()[0] for _ in range(4)]
            for connection, sent in zip(accepted, (*BEGINNINGS, BEGINNINGS[0]), strict=True):
                connection.settimeout(20)
                assert (connection.recv(4_096) if sent else b"") == sent
                connection.setblocking(False)
                with pytest.raises(BlockingIOError):
                    connection.recv(1)
        for connection in accepted:
            connection.settimeout(20)
            assert connection.recv(1) == b""
            connection.close()
