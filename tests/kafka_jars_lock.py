"""Write the list of Kafka's jars that the package ships: ``make jars-lock``.

Run it after a change of ``KAFKA_VERSION``. It resolves the dependencies of Kafka as Maven does, and downloads
all jars to get their sizes and digests.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from jgo.maven import MavenContext
from jgo.parse import Coordinate
from packageurl.contrib.purl2url import DEFAULT_MAVEN_REPOSITORY
from stoplog_gateway.local.kafka_jars import KAFKA_VERSION, LOCK, Jar

COORDINATES: Final = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    # Kafka logs through slf4j 1.7 and brings log4j-core 2.25.4; this joins the two.
    "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4",
)

_TIMEOUT_S: Final = 60
_PARALLEL: Final = 8


def resolve(cache: Path) -> list[Jar]:
    """Return all jars that the coordinates need, downloaded into *cache*."""
    context = MavenContext(
        repo_cache=cache, remote_repos={"central": DEFAULT_MAVEN_REPOSITORY}, timeout=_TIMEOUT_S
    )
    roots = [
        # Raw: log4j's list of managed versions must not choose Kafka's client library.
        context.create_dependency(replace(Coordinate.parse(text), scope="compile", raw=True))
        for text in COORDINATES
    ]
    inputs, transitive = context.resolver.resolve(roots)
    needed = [*inputs, *(dep for dep in transitive if dep.scope in ("compile", "runtime"))]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        files: list[Path] = list(pool.map(lambda dependency: dependency.artifact.resolve(), needed))
    return sorted(
        (
            Jar(
                file.relative_to(cache).as_posix(),
                file.stat().st_size,
                hashlib.sha256(file.read_bytes()).hexdigest(),
            )
            for file in files
        ),
        key=lambda jar: jar.path,
    )


def main() -> None:
    """Write the list."""
    with TemporaryDirectory() as folder:
        jars = resolve(Path(folder))
    LOCK.write_text("".join(f"{jar.sha256} {jar.size} {jar.path}\n" for jar in jars))
    print(f"{LOCK}: {len(jars)} jars, {sum(jar.size for jar in jars) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
