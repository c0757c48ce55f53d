"""Slow a gateway down, so that a load generator on the same machine can offer several times its capacity.

A request costs a load generator about as much CPU as a gateway. On a few cores, no generator can offer five
times what a gateway takes. Therefore Linux limits the gateway's CPU time, by a control group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CPU_SHARE: Final = 1 / 8
"""CPU time of the slow gateway, in cores."""

_PERIOD_US: Final = 8_000
"""Length of a period. The shortest quota that Linux accepts is 1 ms of CPU time in each."""

_ROOT: Final = Path("/sys/fs/cgroup")


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """Limit process *pid* to :data:`CPU_SHARE` of a core within ``with``.

    Raises:
        SystemExit: This process may not make control groups.
    """
    quota = round(_PERIOD_US * CPU_SHARE)
    unified = (_ROOT / "cgroup.controllers").exists()
    parent = _ROOT if unified else _ROOT / "cpu"
    group = parent / f"stoplog-bench-{os.getpid()}"
    before = parent / _group_of(pid, unified=unified)
    try:
        group.mkdir()
        if unified:
            (group / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as exc:
        raise SystemExit(
            f"{exc}: this benchmark needs control groups to slow the gateway down. Run it as root, with the "
            f"controller `cpu` in {parent}"
        ) from exc
    try:
        yield
    finally:
        (before / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def _group_of(pid: int, *, unified: bool) -> str:
    """Return the path of the control group of process *pid*."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == ("" if unified else "cpu") or (not unified and "cpu" in controllers.split(",")):
            return path.strip("/")
    return ""
