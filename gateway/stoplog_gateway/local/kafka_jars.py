"""Download Apache Kafka's jars from a Maven repository into a folder of ours.

The package ships the list of jars (``kafka_jars.lock``): path in the repository, size and SHA-256 digest of
each. So Maven is not needed, a mirror cannot serve other files, and the download knows how far it is.
"""

from __future__ import annotations

import hashlib
import ssl
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

import httpx
import truststore
from packageurl.contrib.purl2url import DEFAULT_MAVEN_REPOSITORY

from stoplog.errors import StoplogError

KAFKA_VERSION: Final = "4.3.1"

LOCK: Final = Path(__file__).with_name("kafka_jars.lock")
"""The list of jars. ``make jars-lock`` writes it."""

_TIMEOUT_S: Final = 60.0
_PARALLEL: Final = 8


class JarsUnavailable(StoplogError):
    """Kafka's jars are not here and could not be downloaded; the text states why and what to do."""


class _WrongDigest(Exception):
    """A file differs from the list of jars."""


@dataclass(frozen=True)
class Jar:
    """One line of the list of jars.

    Attributes:
        path: Path in a Maven repository.
        size: Bytes.
        sha256: SHA-256 digest, in hexadecimal.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Download:
    """How far a download is; its text is for people.

    >>> download = Download(jars=12, all_jars=46, received=13_400_000, size=45_000_000)
    >>> print(f"{download}, {download.share:.0%}")
    12 of 46 jars, 13 of 45 MB, 30%
    """

    jars: int
    all_jars: int
    received: int
    size: int

    @property
    def share(self) -> float:
        """The part of all bytes that is here, from 0 to 1."""
        return self.received / self.size

    def __str__(self) -> str:
        megabytes = f"{self.received / 1e6:.0f} of {self.size / 1e6:.0f} MB"
        return f"{self.jars} of {self.all_jars} jars, {megabytes}"


OnProgress = Callable[[Download], None]
"""Called with each step of a download, by one thread at a time."""


def read_lock() -> list[Jar]:
    """Return the list of jars."""
    lines = (line.split() for line in LOCK.read_text().splitlines())
    return [Jar(path, int(size), sha256) for sha256, size, path in lines]


def jars_folder(home: Path) -> Path:
    """Return the folder below *home* that holds the jars of this version."""
    return home / "kafka" / f"jars-{KAFKA_VERSION}"


def fetch_jars(home: Path, *, mirror: str | None = None, on_progress: OnProgress | None = None) -> Path:
    """Return the folder below *home* with Kafka's jars; download them first if it does not exist.

    Args:
        home: The folder of all data (``STOPLOG_HOME``).
        mirror: URL of a Maven repository to use in place of Maven Central.
        on_progress: Called with how far the download is.

    Returns:
        The folder: 46 jars, 45 MB, without subfolders. It is complete, or it does not exist.

    Raises:
        JarsUnavailable: the jars could not be downloaded.
    """
    folder = jars_folder(home)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    repository = (mirror or DEFAULT_MAVEN_REPOSITORY).rstrip("/")
    # A partial download must not look like a jar, so the whole folder appears by one rename.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as scratch:
        staged = Path(scratch, "jars")
        staged.mkdir()
        try:
            _download_all(repository, staged, on_progress or _ignore)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, _WrongDigest) as exc:
            raise JarsUnavailable(
                f"Apache Kafka {KAFKA_VERSION} could not be downloaded from {repository} ({_reason(exc)}): "
                f"{_remedy(exc)}, or set STOPLOG_KAFKA=host:port to use a broker you have"
            ) from exc
        try:
            staged.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has downloaded the same jars first
                raise
    return folder


def http_client() -> httpx.Client:
    """Return a client for Maven repositories that trusts the certificates of this system.

    A company's proxy may have its own CA. pip accepts it from there, too.
    """
    context = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx.Client(verify=context, timeout=_TIMEOUT_S, follow_redirects=True)


def download(client: httpx.Client, url: str, file: Path, on_bytes: Callable[[int], None]) -> str:
    """Download *url* to *file* and return its SHA-256 digest; call *on_bytes* with the size of each piece.

    Raises:
        httpx.HTTPError: the server does not answer, or not with the file.
    """
    digest = hashlib.sha256()
    with client.stream("GET", url) as response, file.open("wb") as out:
        response.raise_for_status()
        for piece in response.iter_bytes():
            out.write(piece)
            digest.update(piece)
            on_bytes(len(piece))
    return digest.hexdigest()


def _download_all(repository: str, folder: Path, on_progress: OnProgress) -> None:
    """Download all jars into *folder*, several at a time."""
    jars = read_lock()
    progress = _Progress(jars, on_progress)

    def fetch(jar: Jar) -> None:
        file = folder / jar.path.rpartition("/")[2]
        if download(client, f"{repository}/{jar.path}", file, progress.add_bytes) != jar.sha256:
            raise _WrongDigest(f"the SHA-256 digest of {file.name} is not that of the original")
        progress.add_jar()

    with http_client() as client, ThreadPoolExecutor(_PARALLEL) as pool:
        try:
            list(pool.map(fetch, jars))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _reason(exc: Exception) -> str:
    """Return the first line of the error's text, or its name if it has none."""
    return next(iter(str(exc).splitlines()), type(exc).__name__)


def _remedy(exc: Exception) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(exc):
        return "add the CA of your proxy or mirror to the certificates of this system"
    return (
        "check the network and start again, set STOPLOG_MAVEN_MIRROR to a Maven repository that you can reach"
    )


def _ignore(_: Download) -> None:
    """Show nothing."""


class _Progress:
    """Counts jars and bytes for a callback, while several threads download."""

    def __init__(self, jars: list[Jar], on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._lock = Lock()
        self._jars = self._received = 0
        self._all_jars, self._size = len(jars), sum(jar.size for jar in jars)

    def add_bytes(self, count: int) -> None:
        """Add received bytes."""
        with self._lock:
            self._received += count
            self._report()

    def add_jar(self) -> None:
        """Add a complete jar."""
        with self._lock:
            self._jars += 1
            self._report()

    def _report(self) -> None:
        self._on_progress(Download(self._jars, self._all_jars, self._received, self._size))
