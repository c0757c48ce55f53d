"""Programs with green threads: a limiter refuses to start, instead of waiting for ever."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
{patch}
import asyncio
from stoplog import BlockingLimiter, Limiter, SettingsError

async def enter():
    await Limiter("127.0.0.1:1").__aenter__()

limiter = BlockingLimiter("127.0.0.1:1")
for start in (limiter.__enter__, limiter.start_on_first_use, lambda: enter().send(None)):
    try:
        start()
    except SettingsError as exc:
        print(exc)
"""


@pytest.mark.parametrize(
    ("library", "patch"),
    [
        ("gevent", "from gevent import monkey; monkey.patch_all()"),
        ("eventlet", "import eventlet; eventlet.monkey_patch()"),
    ],
)
def test_limiter_refuses_to_start_with_green_threads(library: str, patch: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.format(patch=patch)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = ended.stdout.splitlines()
    assert [line.partition(" has replaced the threads")[0] for line in lines] == [library] * 3, ended
    assert all("gthread" in line for line in lines)


def test_limiter_starts_if_threads_are_not_patched() -> None:
    program = PROGRAM.format(patch="from gevent import monkey; monkey.patch_all(thread=False)")
    program = program.replace("limiter.__enter__, ", "").replace(", lambda: enter().send(None)", ",")
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout == ""
