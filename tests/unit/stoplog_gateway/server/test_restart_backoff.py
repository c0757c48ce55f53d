from __future__ import annotations

from stoplog_gateway.server.restart_backoff import RestartBackoff


def test_delay_doubles_with_each_end_in_a_row_up_to_30_s() -> None:
    backoff = RestartBackoff()
    backoff.on_start()
    assert [backoff.next_delay() for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_delay_after_weeks_of_ends_stays_at_its_maximum() -> None:
    backoff = RestartBackoff()
    backoff.on_start()
    assert {backoff.next_delay() for _ in range(100_000)} == {0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0}


def test_delay_restarts_at_half_a_second_after_a_stable_run() -> None:
    now = 1_000.0
    backoff = RestartBackoff(clock=lambda: now)
    backoff.on_start()
    assert (backoff.next_delay(), backoff.next_delay()) == (0.5, 1.0)
    now += 61
    assert backoff.next_delay() == 0.5


def test_process_keeps_ending_from_the_longest_delay_until_a_stable_run() -> None:
    now = 1_000.0
    backoff = RestartBackoff(clock=lambda: now)
    backoff.on_start()
    shown = [(backoff.next_delay(), backoff.keeps_ending)[1] for _ in range(7)]
    assert shown == [False] * 6 + [True]
    backoff.on_start()
    assert backoff.keeps_ending
    now += 61
    assert not backoff.keeps_ending
