"""The fold of an earlier release, in a process of its own. Upgrade tests compare it with the present one.

The release's packages come from git (``tests/releases.txt``). The checkout must contain that commit.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stoplog_worker.verify.replay import Record

from tests.support.broker import CHECKOUT

_PROGRAM = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/streams"]
from stoplog_worker.algorithm.fold import fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker
from stoplog_worker.state.store import COUNTERS
from stoplog_worker.state.store import Record as ChangelogRecord
from stoplog.policy import parse_policy
import stoplog

class Reader:
    def __init__(self, counters):
        self.stored = counters
    def counters(self, keys):
        return [self.stored.get(key) for key in keys]
    def counters_of(self, client):
        return [(key, value) for key, value in self.stored.items()
                if key == client or key.startswith(client + b"\\0")]
    def policies(self, keys):
        return [None] * len(keys)

def run(case):
    stored = {bytes.fromhex(key): bytes.fromhex(value) for key, value in case["counters"].items()}
    unreadable = [key.hex() for key, value in stored.items()
                  if ChangelogRecord(0, key, value).entry(COUNTERS) is None]
    marker = Marker(0, case["clock_ms"], case["clock_ms"] or -1, -1, "", parse_policy(case["default"]))
    ledger, answers = Ledger(Reader(stored), marker), []
    for offset, stamp_ms, value in case["records"]:
        folded = fold(ledger, offset, stamp_ms, bytes.fromhex(value), fault_finder(0, 1))
        answers.append([each if each is None or isinstance(each, str)
                        else [getattr(each, name) for name in each.__struct_fields__]
                        for each in folded.answers])
    _, entries = ledger.take_dirty()
    counters = {key.hex(): value.hex() for key, value in entries.counters}
    return {"unreadable": unreadable, "answers": answers, "counters": counters}

print(json.dumps({"version": stoplog.__version__, "cases": [run(case) for case in json.load(sys.stdin)]}))
"""


class Case(NamedTuple):
    """The input of a fold in one partition.

    Attributes:
        default: The built-in default policy, as text.
        counters: The stored states at its beginning.
        clock_ms: Partition time there; 0 if there was no record yet.
        records: The records of ``checks`` from there on.
    """

    default: list[str]
    counters: dict[bytes, bytes]
    clock_ms: int
    records: Sequence[Record]


class Outcome(NamedTuple):
    """The result of a fold.

    Attributes:
        unreadable: The keys of stored states that a restore would not store.
        answers: For each record the answers to its checks: the fields of a decision, a reason, or ``None``.
        counters: The states to be written.
    """

    unreadable: list[bytes]
    answers: list[list[Any]]
    counters: dict[bytes, bytes]


class OldRelease:
    """The packages of a release.

    Args:
        version: The release.
        folder: An empty folder for them.
    """

    def __init__(self, version: str, folder: Path) -> None:
        self._version = version
        self._folder = folder
        [commit] = (commit for name, commit in _releases() if name == version)
        archive = subprocess.run(
            ["git", "archive", commit, "stoplog", "streams", "gateway", "topics.yaml"],
            cwd=CHECKOUT,
            capture_output=True,
            check=True,
        )
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
            packed.extractall(folder, filter="data")

    @property
    def env(self) -> dict[str, str]:
        """The environment in which a Python process imports the packages of this release."""
        path = os.pathsep.join(map(str, (self._folder, self._folder / "streams", self._folder / "gateway")))
        # Otherwise `python -m` would look in the present folder first, which may be a checkout.
        return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}

    def fold(self, cases: Sequence[Case]) -> list[Outcome]:
        """Return the outcome of each of *cases*."""
        asked = [
            {
                "default": case.default,
                "counters": {key.hex(): value.hex() for key, value in case.counters.items()},
                "clock_ms": case.clock_ms,
                "records": [(offset, stamp, (value or b"").hex()) for offset, stamp, value in case.records],
            }
            for case in cases
        ]
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, str(self._folder)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["version"] == self._version, "not the release's packages"
        return [
            Outcome(
                [bytes.fromhex(key) for key in one["unreadable"]],
                one["answers"],
                {bytes.fromhex(key): bytes.fromhex(value) for key, value in one["counters"].items()},
            )
            for one in found["cases"]
        ]

    def next_offset(self, marker: bytes) -> int:
        """Return where this release would continue after *marker*, a stored value."""
        program = (
            'import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + "/streams"]\n'
            "from stoplog_worker.algorithm.state_codec import decode_marker\n"
            "print(decode_marker(bytes.fromhex(sys.argv[2])).next_offset)"
        )
        command = [sys.executable, "-c", program, str(self._folder), marker.hex()]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def heartbeat(self, node: str) -> bytes:
        """Return the heartbeat of a worker of this release."""
        program = (
            "import sys; sys.path[:0] = [sys.argv[1]]\n"
            "from stoplog.wire.heartbeats import Heartbeat, encode_heartbeat\n"
            "import stoplog\n"
            "beat = Heartbeat(sys.argv[2], 'worker', stoplog.__version__, 'host', 0, lane='a')\n"
            "sys.stdout.buffer.write(encode_heartbeat(beat))"
        )
        command = [sys.executable, "-c", program, str(self._folder), node]
        value = subprocess.run(command, capture_output=True, check=True).stdout
        assert self._version.encode() in value, "not the release's packages"
        return value


def _releases() -> Iterator[tuple[str, str]]:
    """Yield version and commit of each release."""
    for line in (CHECKOUT / "tests" / "releases.txt").read_text().splitlines():
        if not line.startswith("#"):
            version, commit = line.split()
            yield version, commit
