from __future__ import annotations

from stoplog.client.circuit_breaker import Breaker


def test_opens_after_misses_in_a_row_and_says_so_once() -> None:
    breaker = Breaker(3)
    assert [breaker.miss() for _ in range(5)] == [False, False, True, False, False]
    assert breaker.reason == "breaker_open"


def test_a_hit_in_between_starts_the_count_again() -> None:
    breaker = Breaker(2)
    assert not breaker.miss()
    assert not breaker.hit()
    assert not breaker.miss()
    assert breaker.reason is None


def test_any_hit_closes_it_and_says_so_once() -> None:
    breaker = Breaker(1)
    breaker.miss()
    assert [breaker.hit(), breaker.hit()] == [True, False]
    assert breaker.reason is None
    assert breaker.miss()


def test_tripped_it_keeps_its_first_reason() -> None:
    breaker = Breaker(1)
    assert breaker.trip("broker")
    assert not breaker.trip("broker")
    assert not breaker.miss()
    assert breaker.reason == "broker"


def test_is_proven_by_its_first_answer() -> None:
    breaker = Breaker(1)
    assert not breaker.proven
    breaker.hit()
    breaker.miss()
    assert breaker.proven
