"""The peers' programs, downloaded once from registries into a cache directory.

A missing program does not fail the benchmark. The table says what to install.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_LOCK: Final = Path(__file__).with_name("requirements.lock")
_THROTTLECRAB: Final = "0.4.40"
_RATELIMIT: Final = "v1.4.1-0.20260122083618-3fb702589d36"
_BUILD_S: Final = 1_800.0
"""Building 300 crates takes minutes on two cores."""


class PeerMissing(Exception):
    """A peer cannot run on this machine. The text says what to install."""


def cache_folder() -> Path:
    """Return ``stoplog-bench`` in the user's cache directory; create it if necessary."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base, "stoplog-bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def peers_python() -> str:
    """Return the interpreter of the peers' environment; create the environment at the first call.

    Raises:
        PeerMissing: pip could not install the packages.
    """
    digest = hashlib.sha256(_LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache_folder() / f"python-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        _run_command([sys.executable, "-m", "venv", str(folder)])
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        _run_command([*pip, "--require-hashes", "--requirement", str(_LOCK)])
        (folder / "complete").touch()
    return str(python)


def redis_server() -> str:
    """Return the path of redis-server.

    Raises:
        PeerMissing: The program is not on the PATH.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise PeerMissing(
            "redis-server is not on the PATH: install it (Debian: apt-get install redis-server)"
        )
    return program


def throttlecrab_server() -> str:
    """Return the path of throttlecrab's server; build it with cargo at the first call.

    Raises:
        PeerMissing: cargo or protoc is missing, or the build failed.
    """
    root = cache_folder() / f"throttlecrab-{_THROTTLECRAB}"
    program = root / "bin" / "throttlecrab-server"
    if not program.exists():
        cargo = shutil.which("cargo")
        if cargo is None:
            raise PeerMissing("cargo is not on the PATH: install Rust (Debian: apt-get install cargo)")
        if shutil.which("protoc") is None:
            raise PeerMissing(
                "its build needs protoc: install it (Debian: apt-get install protobuf-compiler)"
            )
        package = ["throttlecrab-server", "--version", _THROTTLECRAB, "--locked"]
        _run_command([cargo, "install", "--quiet", "--root", str(root), *package])
    return str(program)


def envoy_ratelimit_server() -> str:
    """Return the path of envoyproxy/ratelimit's server; build it with Go at the first call.

    Raises:
        PeerMissing: Go is missing, or the build failed.
    """
    folder = cache_folder() / f"ratelimit-{_RATELIMIT}"
    program = folder / "service_cmd"
    if not program.exists():
        go = shutil.which("go")
        if go is None:
            raise PeerMissing("go is not on the PATH: install it (Debian: apt-get install golang-go)")
        package = f"github.com/envoyproxy/ratelimit/src/service_cmd@{_RATELIMIT}"
        _run_command([go, "install", package], {"GOBIN": str(folder)})
    return str(program)


def _run_command(command: list[str], env: Mapping[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_BUILD_S,
            check=False,
            env={**os.environ, **(env or {})},
        )
    except subprocess.TimeoutExpired as exc:
        raise PeerMissing(f"{command[0]} took longer than {_BUILD_S:g} s") from exc
    if done.returncode:
        raise PeerMissing(f"{' '.join(command[:4])} ... failed: {done.stderr.strip()[-500:]}")
