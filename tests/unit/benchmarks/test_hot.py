from __future__ import annotations

import pytest

from tests.benchmarks.stages.hot import tenth


@pytest.mark.parametrize(("allowed", "denied", "window"), [(9_000, 26_000, 60), (26_000, 26_000, 10)])
def test_hot_load_is_ten_times_the_limit(allowed: float, denied: float, window: float) -> None:
    limit = tenth(allowed, denied, window)
    spent_after = limit / allowed
    assert limit + denied * (window - spent_after) == pytest.approx(10 * limit, rel=1e-3)


def test_hot_limit_of_a_slow_client_is_at_least_one() -> None:
    assert tenth(0.1, 0.1, 1) == 1
