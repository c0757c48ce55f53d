"""`stoplog up` as a process, for end-to-end tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from stoplog_gateway.ports import free_port

from tests.support.broker import home_with_jars, quick_java

STOP_S: Final = 60

BROKEN_GATEWAY: Final = """
from stoplog.client.transport.kafka_transport import Transport
def fail(self): raise RuntimeError("a bug")
Transport._take_position = fail
from stoplog_gateway.cli import main
main()
"""
"""The `stoplog` command as a program, with a gateway that fails as soon as it has started."""


def environment(home: Path, **extra: str) -> dict[str, str]:
    """Settings for a world of its own: free ports, and nothing of the caller's STOPLOG_* variables."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("STOPLOG_")},
        "STOPLOG_HOME": str(home),
        "STOPLOG_PORT": str(free_port()),
        "STOPLOG_BROKER_PORT": str(free_port()),
        "STOPLOG_METRICS_PORT": "0",
        "JAVA_TOOL_OPTIONS": " ".join(quick_java()),
        # Nothing is let through, or left unconfirmed, only because the machine is busy with other tests.
        "STOPLOG_DEADLINE_MS": "2000",
        "STOPLOG_APPLY_TIMEOUT_MS": "25000",
        **extra,
    }


def stoplog(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "stoplog_gateway", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=STOP_S, check=False)


class Running:
    """A `stoplog up` that was started; ``said`` collects what it prints, both streams."""

    def __init__(self, home: Path, env: dict[str, str], *arguments: str) -> None:
        self.home = home
        self.env = env
        self.url = f"http://127.0.0.1:{env['STOPLOG_PORT']}"
        self.said: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stoplog_gateway", "up", *arguments],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, text: str) -> str:
        """The next line that contains *text*."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.rstrip("\n"))
            if text in line:
                return self.said[-1]
        raise AssertionError(f"it ended and never said {text!r}; it said:\n" + "\n".join(self.said))

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal and read to the end; returns the exit status."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=STOP_S)
        self.said += rest.splitlines()
        return self.process.returncode

    def kill(self) -> None:
        """End it at once, and it alone: what it started goes on."""
        self.process.kill()
        self.process.communicate(timeout=STOP_S)

    def children(self) -> list[int]:
        """Process ids of broker, workers and gateways."""
        return [pid for pid, _ in self.record()["children"]]

    def record(self) -> dict[str, Any]:
        """What it noted of itself in its home."""
        return dict(json.loads((self.home / "up.json").read_text()))

    def log(self, name: str) -> str:
        """A child's log."""
        return (self.home / "logs" / f"{name}.log").read_text()


@contextmanager
def stoplog_up(home: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Running]:
    """Start it and wait until it is ready; it is stopped afterwards."""
    if not (home / "kafka").exists():
        home_with_jars(home)
    running = Running(home, env or environment(home), *arguments)
    try:
        running.wait_for("stoplog is ready")
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()
