from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import stoplog

NAMES = [
    "Answer",
    "BlockingLimiter",
    "Check",
    "Denied",
    "InvalidInput",
    "LimitExceeded",
    "Limiter",
    "RateLimit",
    "RateLimitMiddleware",
    "Settings",
    "SettingsError",
    "StoplogError",
    "TopicError",
    "WaitTimeout",
    "limit",
]
"""Removing or renaming one of these breaks the programs of users."""

HEAVY = {"asyncio", "confluent_kafka", "msgspec", "pydantic", "prometheus_client", "uvloop", "yaml"}
"""Packages that `import stoplog` alone must not load."""

EXTRAS = {"fastapi", "httpx", "opentelemetry", "rich", "starlette", "typer", "uvicorn"}
"""Packages of the extras, which the SDK must not load."""

PROGRAM = """
import asyncio

from starlette.applications import Starlette

from stoplog import Answer, BlockingLimiter, Check, InvalidInput, Limiter, RateLimit, RateLimitMiddleware
from stoplog import Settings, SettingsError, StoplogError, TopicError, __version__


async def main() -> None:
    async with Limiter("127.0.0.1:9092", deadline_ms=100) as limiter:
        answer: Answer = await limiter.check("alice", 2, plan="gold", resource="login")
        answers: list[Answer] = await limiter.check_many([Check("alice"), Check("bob", cost=3)])
        print(answer.allowed, [one.remaining for one in answers])
        await limiter.check(7)  # type: ignore[arg-type]


def in_a_thread(settings: Settings) -> bool:
    try:
        with BlockingLimiter(settings) as limiter:
            return limiter.check("alice").allowed
    except (InvalidInput, SettingsError, TopicError) as exc:
        error: StoplogError = exc
        raise SystemExit(f"{__version__}: {error}") from exc


def create_app(limiter: Limiter) -> Starlette:
    app = Starlette()
    app.add_middleware(RateLimitMiddleware, limiter=limiter, identify=lambda c: c.headers.get("x-api-key"))
    return app


reports = RateLimit(Limiter("127.0.0.1:9092"), lambda connection: connection.headers["x-api-key"], cost=10)
asyncio.run(main())
"""


def loaded_by(code: str) -> set[str]:
    """Return the top-level packages that a new interpreter has loaded after *code*."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return {name.partition(".")[0] for name in run.stdout.split()}


def error_without(package: str, code: str) -> str:
    """Return the last line that *code* prints when *package* is not installed."""
    script = f"import sys\nsys.modules[{package!r}] = None\n{code}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    return run.stderr.splitlines()[-1]


def test_public_names_are_exactly_those_listed() -> None:
    assert stoplog.__all__ == NAMES
    for name in NAMES:
        assert getattr(stoplog, name).__name__ == name
        assert name in dir(stoplog)


def test_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Limit'"):
        stoplog.Limit  # type: ignore[attr-defined]  # noqa: B018


def test_import_stoplog_loads_nothing_heavy() -> None:
    assert not loaded_by("import stoplog") & (HEAVY | EXTRAS)


@pytest.mark.parametrize("name", ["Limiter", "BlockingLimiter", "Check", "Settings", "StoplogError"])
def test_name_of_the_sdk_loads_no_package_of_an_extra(name: str) -> None:
    assert not loaded_by(f"from stoplog import {name}") & EXTRAS


def test_middleware_loads_no_fastapi_and_no_gateway() -> None:
    loaded = loaded_by("from stoplog import RateLimitMiddleware")
    assert not loaded & {"fastapi", "stoplog_gateway", "stoplog_worker", "typer", "uvicorn"}


def test_rate_limit_without_fastapi_names_the_remedy() -> None:
    assert error_without("fastapi", "from stoplog import RateLimit") == (
        "ImportError: RateLimit needs FastAPI, which is not installed: run pip install fastapi"
    )


def test_middleware_without_starlette_names_the_remedy() -> None:
    assert error_without("starlette", "from stoplog import RateLimitMiddleware") == (
        "ImportError: RateLimitMiddleware needs Starlette, which is not installed: "
        "run pip install 'stoplog[asgi]'"
    )


def test_users_program_passes_mypy_strict(tmp_path: Path) -> None:
    # The ignored error proves that the types are seen: an unused ignore is an error.
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    cache = Path(__file__).parents[3] / ".mypy_cache" / "user-program"
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", cache, program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.stdout == "Success: no issues found in 1 source file\n", run.stderr
