"""Tokens of 20 s over two minutes, and a token endpoint that is down for 30 s: `make token-soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.token_rotation import run_with_short_tokens


@pytest.mark.timeout(900)
def test_tokens_of_20_seconds_are_renewed_for_two_minutes_and_after_an_outage(tmp_path: Path) -> None:
    run_with_short_tokens(tmp_path, lifetime_s=20.0, steady_s=120.0, down_s=30.0)
