from __future__ import annotations

import subprocess
import sys

from tests.benchmarks.run import STAGE_RUNS
from tests.benchmarks.table import STAGES
from tests.support.broker import CHECKOUT


def test_each_stage_has_rows_in_the_table() -> None:
    assert set(STAGE_RUNS) == set(STAGES)


def test_unknown_stage_is_an_error_that_names_the_stages() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.run", "caller"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "unknown stages: caller; choose from callers leases" in done.stderr
