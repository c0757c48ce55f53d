"""`stoplog up` as a process, for end-to-end tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from stoplog_gateway.access.local_token import TOKEN_FILE
from stoplog_gateway.ports import free_port

from tests.support.broker import home_with_jars, quick_java

STOP_S: Final = 60

BROKEN_GATEWAY: Final = """
from stoplog.client.transport.reply_consumer import ReplyConsumer
def fail(self): raise RuntimeError("a bug")
ReplyConsumer.take_position = fail
from stoplog_gateway.cli import main
main()
"""
"""The `stoplog` command as a program, with a gateway that fails as soon as it has started."""


def environment(home: Path, **extra: str) -> dict[str, str]:
    """Return settings for a system of its own: free ports, and none of the caller's STOPLOG_* variables."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("STOPLOG_")},
        "STOPLOG_HOME": str(home),
        "STOPLOG_PORT": str(free_port()),
        "STOPLOG_BROKER_PORT": str(free_port()),
        "STOPLOG_METRICS_PORT": "0",
        "STOPLOG_DRAIN_S": "0",
        "JAVA_TOOL_OPTIONS": " ".join(quick_java()),
        # Long, so that no check fails open and no change stays unconfirmed while other tests run.
        "STOPLOG_DEADLINE_MS": "2000",
        "STOPLOG_APPLY_TIMEOUT_MS": "25000",
        **extra,
    }


def stoplog(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command until it ends."""
    command = [sys.executable, "-m", "stoplog_gateway", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=STOP_S, check=False)


class Running:
    """A running `stoplog up`; ``printed`` has the lines that it printed, on both streams.

    Args:
        home: Its data folder.
        env: Its environment.
        *arguments: Options of the command.
        python: The interpreter, in whose environment Stoplog is installed.
        folder: Its working directory.
    """

    def __init__(
        self,
        home: Path,
        env: dict[str, str],
        *arguments: str,
        python: str = sys.executable,
        folder: Path | None = None,
    ) -> None:
        self.home = home
        self.env = env
        self.url = f"http://127.0.0.1:{env['STOPLOG_PORT']}"
        self.printed: list[str] = []
        self.process = subprocess.Popen(
            [python, "-m", "stoplog_gateway", "up", *arguments],
            env=env,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, text: str) -> str:
        """Return the next line that contains *text*."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed.append(line.rstrip("\n"))
            if text in line:
                return self.printed[-1]
        raise AssertionError(f"it ended without printing {text!r}; it printed:\n" + "\n".join(self.printed))

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal, wait for the end and return the exit status."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=STOP_S)
        self.printed += rest.splitlines()
        return self.process.returncode

    def end(self) -> None:
        """Stop, unless it has ended."""
        if self.process.poll() is None:
            self.stop()

    def kill(self) -> None:
        """Kill this process alone."""
        self.process.kill()
        self.process.communicate(timeout=STOP_S)

    @property
    def authorization(self) -> dict[str, str]:
        """The header field with the token that it made."""
        return {"Authorization": f"Bearer {(self.home / TOKEN_FILE).read_text().strip()}"}

    def children(self) -> list[int]:
        """Return the process ids of gateways, workers and broker."""
        return [pid for pid, _ in self.record()["children"]]

    def record(self) -> dict[str, Any]:
        """Return what it recorded in its data folder.

        The file is the lock, too. So it is written in place, and a reader may find it incomplete.
        """
        while True:
            with suppress(json.JSONDecodeError):
                return dict(json.loads((self.home / "up.json").read_text()))

    def log(self, name: str) -> str:
        """Return the log of the child *name*."""
        return (self.home / "logs" / f"{name}.log").read_text()


@contextmanager
def stoplog_up(home: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Running]:
    """Start `stoplog up` and wait until it is ready; stop it afterwards."""
    if not (home / "kafka").exists():
        home_with_jars(home)
    running = Running(home, env or environment(home), *arguments)
    try:
        running.wait_for("stoplog is ready")
        yield running
    finally:
        running.end()
