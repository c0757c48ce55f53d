"""The README's curl session, run, prints what the README says."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.broker import CHECKOUT, fresh_broker
from tests.system import running_system

VARYING = re.compile(r'(?<=_ms":)[1-9]\d*|(?<=t=)\d+|(?<=retry-after: )\d+')
"""Milliseconds and seconds depend on when the command is run; everything else must be the same."""


def session() -> list[tuple[str, str]]:
    """Commands and what they print."""
    [block] = re.findall(r"```console\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def test_the_curl_session_prints_what_the_readme_shows(tmp_path: Path) -> None:
    commands = session()
    assert len(commands) >= 6
    with (
        fresh_broker() as broker,
        running_system(broker, tmp_path, deadline_ms=10_000) as system,
    ):
        for command, shown in commands:
            run = command.replace("http://127.0.0.1:8080", system.gateways[0].url)
            done = subprocess.run(["bash", "-c", run], capture_output=True, text=True, timeout=60, check=True)
            printed = done.stdout.replace("\r", "").rstrip("\n")
            assert VARYING.sub("N", printed) == VARYING.sub("N", shown.rstrip("\n")), command
