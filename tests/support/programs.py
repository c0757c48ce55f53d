"""Programs that some tests run and no Python package brings: where they are, and what installs them.

Outside CI a test that needs a missing program is skipped, and the summary of the run says what installs it.
CI installs all of them first, and there a skip is a failure: ``python3 tests/support/programs.py`` lists the
packages. This module needs the standard library only, because CI runs it before it installs packages.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_FOLDERS: Final = ("/usr/sbin", "/usr/local/sbin")
"""Debian installs servers there, and the PATH of an ordinary user does not have it."""

_CHECKOUT: Final = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Program:
    """A program, or a library to preload, that tests run.

    Attributes:
        name: Name of the executable.
        install: Shell command that installs it on Debian.
        pattern: Glob pattern of its file below ``/usr/lib``, if it is not an executable on the PATH.
        file: Its file, if it is at one place only.
    """

    name: str
    install: str
    pattern: str | None = None
    file: Path | None = None

    def find(self) -> Path | None:
        """Return where it is, or ``None`` if it is not installed."""
        if self.file is not None:
            return self.file if self.file.is_file() else None
        if self.pattern is not None:
            return next(iter(sorted(Path("/usr/lib").glob(self.pattern))), None)
        found = shutil.which(self.name) or shutil.which(self.name, path=":".join(_FOLDERS))
        return Path(found) if found else None


def _debian(name: str, package: str | None = None, *, pattern: str | None = None) -> Program:
    return Program(name, f"apt-get install --no-install-recommends {package or name}", pattern)


PROGRAMS: Final = {
    program.name: program
    for program in (
        _debian("chromium"),
        _debian("curl"),
        _debian("faketime", pattern="*/faketime/libfaketime.so.1"),
        _debian("nginx", "nginx-light"),
        _debian("openssl"),
        _debian("prometheus"),
        _debian("promtool", "prometheus"),
        Program("envoy", "make .venv/envoy", file=_CHECKOUT / ".venv" / "envoy" / "envoy" / "_bin" / "envoy"),
        Program("helm", "make .venv/helm", file=_CHECKOUT / ".venv" / "helm" / "helm"),
    )
}
"""All that tests may name in ``@pytest.mark.needs(...)``."""


def path_of(name: str) -> str:
    """Return the path of the program *name*, for a test that is marked with ``needs(name)``."""
    found = PROGRAMS[name].find()
    assert found is not None, f"{name} is not installed, and the test lacks @pytest.mark.needs({name!r})"
    return str(found)


def missing(names: Iterable[str]) -> list[Program]:
    """Return those of the programs *names* that are not installed."""
    return [PROGRAMS[name] for name in names if PROGRAMS[name].find() is None]


def install_commands(names: Iterable[str]) -> list[str]:
    """Return as few shell commands as possible that install the programs *names*."""
    packages, others = set(), set()
    for name in names:
        command, _, package = PROGRAMS[name].install.rpartition(" ")
        if command.startswith("apt-get"):
            packages.add(package)
        else:
            others.add(PROGRAMS[name].install)
    apt = [" ".join(("apt-get install --no-install-recommends", *sorted(packages)))] if packages else []
    return [*sorted(others), *apt]


if __name__ == "__main__":
    # The Debian packages that are missing here, for .ci/run.
    commands = install_commands(program.name for program in missing(PROGRAMS))
    sys.stdout.write("".join(line.partition("recommends ")[2] for line in commands if line.startswith("apt")))
