"""Open-loop load over HTTP: vegeta sends at a fixed rate, whether or not responses come, up to a maximum.

A closed-loop generator such as wrk waits for responses, so it slows down together with the server.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.benchmarks.peers.environment import PeerMissing, cache_folder

_VERSION: Final = "v12.13.0"
_MODULE: Final = f"github.com/tsenart/vegeta/v12@{_VERSION}"
_BUILD_S: Final = 900.0
_TIMEOUT_S: Final = 5.0

MAX_IN_FLIGHT: Final = 1_000
"""Requests that wait for a response at the same time, as in the connection pools of callers. With no maximum,
vegeta opens thousands of connections a second to a late server, which takes more CPU than the server has."""

_MORE_S: Final = 60.0
"""Seconds that vegeta may take longer than its attack: it waits for every response."""


def vegeta() -> str:
    """Return the path of vegeta; build it with Go at the first call.

    Raises:
        PeerMissing: Go is missing, or the build failed. The text says what to do.
    """
    folder = cache_folder() / f"vegeta-{_VERSION}"
    program = folder / "vegeta"
    if not program.exists():
        go = shutil.which("go")
        if go is None:
            raise PeerMissing(
                "go is not on the PATH, and vegeta is built with it: install Go 1.21 or newer "
                "(https://go.dev/dl, Debian: apt-get install golang-go)"
            )
        build = [go, "install", _MODULE]
        environment = {**os.environ, "GOBIN": str(folder), "GOFLAGS": ""}
        try:
            done = subprocess.run(
                build, env=environment, capture_output=True, text=True, timeout=_BUILD_S, check=False
            )
        except subprocess.TimeoutExpired as exc:
            raise PeerMissing(f"{' '.join(build)} took longer than {_BUILD_S:g} s") from exc
        if done.returncode:
            raise PeerMissing(f"{' '.join(build)} failed: {done.stderr.strip()[-500:]}")
    return str(program)


class Result(NamedTuple):
    """One request.

    Attributes:
        at_s: When it was sent, in seconds since the Unix epoch.
        status: Status of the response; 0 without one.
        seconds: From the request to the end of its response, or to the error.
        error: Why there is no response; otherwise empty, or a text about the status.
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
        url: URL of all requests.
        bodies: Bodies of the requests, in turn; none for GET requests.
        fields: Header fields of all requests.
        rate: Requests per second; 0: each one as soon as another one has its response.
        seconds: Duration.
        folder: Directory for the requests and the results.
        name: Name of the files.
        in_flight: Maximum number of requests that wait for a response at the same time.
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
        in_flight: int = MAX_IN_FLIGHT,
        fields: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._results = folder / f"{name}.bin"
        self._seconds = seconds
        targets = folder / f"{name}.json"
        header = {key: [value] for key, value in fields}
        with targets.open("w") as file:
            for body in bodies:
                content = base64.b64encode(body).decode()
                media = {"Content-Type": ["application/json"]}
                target = {"method": "POST", "url": url, "body": content, "header": {**header, **media}}
                file.write(json.dumps(target) + "\n")
            if file.tell() == 0:
                file.write(json.dumps({"method": "GET", "url": url, "header": header}) + "\n")
        self._process = subprocess.Popen(
            [
                vegeta(),
                "attack",
                "-format=json",
                f"-targets={targets}",
                f"-output={self._results}",
                f"-rate={round(rate * 1_000)}/1000s" if rate else "-rate=0",
                f"-duration={seconds}s",
                f"-timeout={_TIMEOUT_S:g}s",
                f"-max-workers={in_flight}",
                f"-connections={MAX_IN_FLIGHT}",  # idle ones that are kept
                "-http2=false",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )

    def results(self) -> Iterator[Result]:
        """Wait until every request has its response or failed; then yield all of them by time.

        Raises:
            RuntimeError: vegeta failed.
        """
        _, errors = self._process.communicate(timeout=self._seconds + _MORE_S)
        if self._process.returncode:
            raise RuntimeError(f"vegeta ended with status {self._process.returncode}: {errors}")
        encode = [vegeta(), "encode", "-to=csv", str(self._results)]
        with subprocess.Popen(encode, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for row in csv.reader(process.stdout):
                at, status, ns, error, body = row[0], row[1], row[2], row[5], row[6]
                yield Result(int(at) / 1e9, int(status), int(ns) / 1e9, error, base64.b64decode(body))
        self._results.unlink()
