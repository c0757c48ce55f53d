from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.benchmarks import load_http
from tests.benchmarks.client_ids import SCATTER, client_id, picker


def test_picker_of_each_client_returns_every_number_in_turn() -> None:
    pick = picker(3, "each")
    assert [pick() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_uniform_picker_returns_even_bounded_and_repeatable_numbers() -> None:
    picks = [[pick() for _ in range(20_000)] for pick in (picker(10, "uniform", 7), picker(10, "uniform", 7))]
    assert picks[0] == picks[1]
    counts = Counter(picks[0])
    assert set(counts) == set(range(10))
    assert max(counts.values()) < 1.15 * min(counts.values())


def test_zipf_picker_follows_the_exponent_1_and_stays_in_bounds() -> None:
    pick = picker(1_000, "zipf", 7)
    counts = Counter(pick() for _ in range(200_000))
    assert min(counts) == 0
    assert max(counts) <= 999
    # Clients 100 to 199 are ten times as many as 10 to 19, and each sends about ten times fewer checks.
    few, many = sum(counts[n] for n in range(9, 19)), sum(counts[n] for n in range(99, 199))
    assert 0.93 < few / many < 1.07


def test_client_ids_are_unique_scattered_and_of_one_length() -> None:
    ids = [client_id(n) for n in range(100_000)]
    assert {len(it) for it in (*ids, client_id(9_999_999))} == {9}
    assert len(set(ids)) == len(ids)
    assert len({it[:3] for it in ids[:1_000]}) > 200


def test_wrk_script_uses_the_same_client_ids() -> None:
    script = Path(load_http.__file__).with_name("wrk.lua").read_text()
    assert f'string.format("c%08x", number * {SCATTER} % {2**32})' in script
    assert 10_000_000 * SCATTER < 2**53
