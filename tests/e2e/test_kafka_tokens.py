"""Tokens that expire while a system runs, and a token endpoint that is down."""

from __future__ import annotations

from pathlib import Path

from tests.support.token_rotation import run_with_short_tokens


def test_short_tokens_are_renewed_without_a_degraded_check_and_an_outage_ends_by_itself(
    tmp_path: Path,
) -> None:
    run_with_short_tokens(tmp_path, lifetime_s=6.0, steady_s=13.0, down_s=9.0)
