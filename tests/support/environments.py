"""Virtual environments with Stoplog, installed as users do: a wheel, and its packages from the index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from uv import find_uv_bin

_TIMEOUT_S: Final = 300

ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
"""Variables for a program in such an environment: none of the test run's."""


def uv(*arguments: str | Path) -> str:
    """Run uv, which must succeed, and return its output."""
    done = subprocess.run(
        [find_uv_bin(), *arguments],
        env={**os.environ, "UV_SYSTEM_CERTS": "true"},  # as pip: a proxy may have its own CA
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Environment:
    """A virtual environment in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.command = folder / "bin" / "stoplog"
        uv("venv", "--quiet", "--python", sys.executable, folder)

    def install(self, *arguments: str | Path) -> None:
        """Install packages from the index, or files."""
        uv("pip", "install", "--quiet", "--python", self.python, *arguments)

    def packages(self) -> set[str]:
        """Return the names of all installed packages."""
        listed = uv("pip", "list", "--quiet", "--python", self.python, "--format", "json")
        return {package["name"] for package in json.loads(listed)}

    def megabytes(self) -> float:
        """Return the size of all installed files."""
        files = (self.folder / "lib").rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file()) / 1e6

    def run(self, program: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a Python *program* in the working directory *folder*."""
        return subprocess.run(
            [self.python, "-c", program],
            cwd=folder,
            env=ENVIRONMENT | env,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
