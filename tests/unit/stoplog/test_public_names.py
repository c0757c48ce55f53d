"""The names of the SDK."""

from __future__ import annotations

import subprocess
import sys

import pytest

import stoplog

HEAVY = {"asyncio", "confluent_kafka", "fastapi", "pydantic", "prometheus_client", "uvloop"}


def loaded_by(code: str) -> set[str]:
    """Which heavy packages a new interpreter has loaded after *code*."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return HEAVY & set(run.stdout.split())


def test_all_names_are_there() -> None:
    assert stoplog.__all__ == sorted(stoplog.__all__)
    for name in stoplog.__all__:
        assert getattr(stoplog, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Limit'"):
        stoplog.Limit  # type: ignore[attr-defined]  # noqa: B018


def test_a_name_is_imported_when_it_is_used() -> None:
    assert loaded_by("import stoplog") == set()
    assert loaded_by("from stoplog import Limiter") == HEAVY - {"fastapi", "uvloop"}
