"""Open-loop load over HTTP: a program in Go sends at a fixed rate, whether or not responses come.

A closed-loop generator such as wrk waits for responses, so it slows down together with the server. Known
open-loop generators, such as vegeta, need several times as much CPU for a request as wrk. On a few cores they
offer a gateway less than it can take. ``tests/benchmarks/open_loop/main.go`` needs about as much as wrk.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from tests.benchmarks.peers.environment import PeerMissing, cache_folder

_SOURCE: Final = Path(__file__).parent.parent / "open_loop" / "main.go"
_BUILD_S: Final = 300.0
ATTACK_TIMEOUT_S: Final = 5.0
"""Seconds after which a request without a response has failed."""
_RECORD: Final = struct.Struct("<qqHBxI")
NO_RESPONSE: Final = "no response in time"
NO_CONNECTION: Final = "no connection in time"
_WHY: Final = (
    "",
    NO_RESPONSE,
    NO_CONNECTION,
    "connection reset",
    "connection closed",
    "connection refused",
)

MAX_SENT: Final = 15_000
"""Requests that wait for a response at the same time, each on a connection. Further ones are not sent."""

KEPT: Final = 32
"""Connections that are opened before the first request, and kept."""

_MORE_S: Final = 60.0
"""Seconds that the generator may take longer than its attack: it waits for every response."""


def generator() -> str:
    """Return the path of the generator; build it with Go at the first call.

    Raises:
        PeerMissing: Go is missing, or the build failed. The text says what to do.
    """
    version = sha256(_SOURCE.read_bytes()).hexdigest()[:12]
    program = cache_folder() / f"open-loop-{version}"
    if not program.exists():
        go = shutil.which("go")
        if go is None:
            raise PeerMissing(
                "go is not on the PATH, and the load generator is built with it: install Go 1.21 or newer "
                "(https://go.dev/dl, Debian: apt-get install golang-go)"
            )
        program.parent.mkdir(parents=True, exist_ok=True)
        build = [go, "build", "-o", str(program), str(_SOURCE)]
        try:
            done = subprocess.run(build, capture_output=True, text=True, timeout=_BUILD_S, check=False)
        except subprocess.TimeoutExpired as exc:
            raise PeerMissing(f"{' '.join(build)} took longer than {_BUILD_S:g} s") from exc
        if done.returncode:
            raise PeerMissing(f"{' '.join(build)} failed: {done.stderr.strip()[-500:]}")
    return str(program)


class Result(NamedTuple):
    """One request.

    Attributes:
        at_s: When it was due, in seconds since the Unix epoch.
        status: Status of the response; 0 without one.
        seconds: From that time to the end of its response, or to the error.
        error: Why there is no response; otherwise empty.
        body: Body of the response.
    """

    at_s: float
    status: int
    seconds: float
    error: str
    body: bytes


class Attack:
    """Requests at a fixed rate, sent by a process of its own from the construction on.

    Args:
        url: URL of all requests, with an IPv4 address.
        bodies: Bodies of the requests, in turn; none for GET requests.
        fields: Header fields of all requests.
        rate: Requests per second; 0: each one as soon as another one has its response.
        seconds: Duration.
        folder: Directory for the requests and the results.
        name: Name of the files.
        in_flight: Maximum number of requests that wait for a response at the same time.
        kept: Connections that are opened before the first request. Requests that find none of them free open
            further ones, which are closed after their response.
        timeout_s: Seconds after which a request without a response has failed.
    """

    def __init__(
        self,
        url: str,
        bodies: Iterable[bytes],
        *,
        rate: float,
        seconds: float,
        folder: Path,
        name: str,
        in_flight: int = MAX_SENT,
        kept: int = KEPT,
        timeout_s: float = ATTACK_TIMEOUT_S,
        fields: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._results = folder / f"{name}.bin"
        self._seconds = seconds
        parts = urlsplit(url)
        head = f"{parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n" + "".join(
            f"{key}: {value}\r\n" for key, value in fields
        )
        requests = [
            f"POST {head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
            for body in bodies
        ] or [f"GET {head}\r\n".encode()]
        targets = folder / f"{name}.requests"
        targets.write_bytes(b"".join(len(one).to_bytes(4, "little") + one for one in requests))
        numbers = (rate, seconds, in_flight, kept, timeout_s)
        self._process = subprocess.Popen(
            [generator(), parts.netloc, str(targets), str(self._results), *map(str, numbers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.unsent = 0
        """Requests that were due while too many others waited. Known after :meth:`results`."""

    def results(self) -> Iterator[Result]:
        """Wait until every request has its response or failed; then yield all of them by the time of that.

        Raises:
            RuntimeError: The generator failed.
        """
        output, errors = self._process.communicate(timeout=self._seconds + _MORE_S)
        if self._process.returncode:
            raise RuntimeError(f"the load generator ended with {self._process.returncode}: {errors}")
        self.unsent = int(output)
        with self._results.open("rb") as file:
            while record := file.read(_RECORD.size):
                due, took, status, why, size = _RECORD.unpack(record)
                yield Result(due / 1e9, status, took / 1e9, _WHY[why], file.read(size))
        self._results.unlink()
