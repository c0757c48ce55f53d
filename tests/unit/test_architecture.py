"""The rules of DESIGN.md on which package may import which, read from the sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.architecture import Imports, imports_under, reachable, violations, within
from tests.support.broker import CHECKOUT

ROOTS = {"stoplog": CHECKOUT, "stoplog_gateway": CHECKOUT / "gateway", "stoplog_worker": CHECKOUT / "streams"}

KAFKA = ("aiokafka", "confluent_kafka", "faust", "mode", "stoplog.kafka")
CLOCKS = ("asyncio", "datetime", "sched", "stoplog.clock", "threading", "time")
IO = (
    "http",
    "io",
    "logging",
    "mmap",
    "multiprocessing",
    "os",
    "pathlib",
    "rocksdict",
    "shutil",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "tempfile",
    "urllib",
)
CHANCE = ("random", "secrets", "uuid")
FAUST = ("aiokafka", "faust", "mode")
TOOLS = ("tests.docs_lint", "tests.docs_settings", "tests.helm_chart", "tests.kafka_jars_lock", "tests.sbom")
"""Programs for developers that have unit tests."""


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("stoplog", ["stoplog_gateway", "stoplog_worker", "tests"]),
        ("stoplog_gateway", ["stoplog_worker", "tests"]),
        ("stoplog_worker", ["stoplog_gateway", "tests"]),
    ],
)
def test_package_imports_only_what_its_layer_may(package: str, forbidden: list[str]) -> None:
    modules = imports_under(ROOTS[package], package)
    assert len(modules) > 20
    assert violations(modules, forbidden) == []


def test_asgi_package_imports_fastapi_in_the_dependency_only() -> None:
    modules = imports_under(ROOTS["stoplog"], "stoplog")
    assert {found.partition(" ")[0] for found in violations(modules, ["fastapi"])} == {
        "stoplog.asgi.dependency"
    }
    outside = {name: names for name, names in modules.items() if not name.startswith("stoplog.asgi")}
    frameworks = ["starlette", "fastapi", "httpx", "typer", "uvicorn", "flask", "django", "grpc"]
    assert {
        found.partition(" ")[0]: found.rpartition(" ")[2] for found in violations(outside, frameworks)
    } == {
        "stoplog.integrations.django": "django.http.HttpResponse",
        "stoplog.integrations.grpc_aio": "grpc",
        "stoplog.integrations.httpx_transport": "httpx",
    }


def test_wire_formats_import_no_kafka() -> None:
    modules = imports_under(ROOTS["stoplog"], "stoplog", types=False)
    wire = reachable(modules, [name for name in modules if name.startswith("stoplog.wire")])
    assert violations(wire, KAFKA) == []


def test_assignment_package_alone_imports_faust() -> None:
    modules = {
        name: names for package, root in ROOTS.items() for name, names in imports_under(root, package).items()
    }
    importers = {found.partition(" ")[0] for found in violations(modules, FAUST)}
    assert "stoplog_worker.assignment.faust_app" in importers
    assert [name for name in sorted(importers) if not within(name, ["stoplog_worker.assignment"])] == []


@pytest.fixture(scope="module")
def tests() -> Imports:
    """Return the imports of all modules of the test suite."""
    return imports_under(CHECKOUT, "tests")


def test_tests_import_no_test_module(tests: Imports) -> None:
    modules = {name for name in tests if is_test_module(name)}
    assert len(modules) > 100
    assert {name: imported & modules for name, imported in tests.items() if imported & modules} == {}


def test_test_modules_import_helpers_from_the_support_package_only(tests: Imports) -> None:
    """Check the imports of tests; only unit tests of the benchmark and of tools may import these as well."""
    suites = {name: names for name, names in tests.items() if is_test_module(name)}
    outside = [
        found
        for found in violations(suites, ["tests"])
        if not within(found.partition(" -> ")[2], ["tests.support", *TOOLS])
        and not found.startswith("tests.unit.benchmarks.")
        and not found.endswith("-> tests")
    ]
    assert outside == []


def is_test_module(name: str) -> bool:
    module = name.rpartition(".")[2]
    return module == "conftest" or module.startswith("test_")


@pytest.mark.parametrize("forbidden", [KAFKA, CLOCKS, IO, CHANCE], ids=["kafka", "clock", "io", "chance"])
def test_algorithm_reaches_neither_kafka_nor_clock_nor_io(forbidden: tuple[str, ...]) -> None:
    modules = {
        name: names
        for package in ("stoplog", "stoplog_worker")
        for name, names in imports_under(ROOTS[package], package, types=False).items()
    }
    algorithm = reachable(modules, [name for name in modules if name.startswith("stoplog_worker.algorithm")])
    assert len(algorithm) > 5
    assert violations(algorithm, forbidden) == []


# --- the checker itself, on a small tree that breaks the rules ----------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    sources = {
        "pkg/__init__.py": "",
        "pkg/pure/__init__.py": "",
        "pkg/pure/window.py": "from pkg.pure import fold\n",
        "pkg/pure/fold.py": "from ..helper import twice\n",
        "pkg/helper.py": "def twice(n):\n    from time import monotonic\n    return monotonic()\n",
        "pkg/typed.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import other.inner\n",
        "pkg/innocent.py": "import otherwise\nfrom timeit import repeat\n",
        "pkg/clients/__init__.py": "from . import reader\n",
        "pkg/clients/reader.py": "import confluent_kafka as kafka\n",
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_checker_finds_imports_in_functions_and_under_type_checking(tree: Path) -> None:
    modules = imports_under(tree, "pkg")
    assert violations(modules, ["other"]) == ["pkg.typed -> other.inner"]
    assert violations(imports_under(tree, "pkg", types=False), ["other"]) == []
    assert violations(modules, ["time"]) == ["pkg.helper -> time", "pkg.helper -> time.monotonic"]


def test_checker_follows_imports_through_other_modules(tree: Path) -> None:
    modules = imports_under(tree, "pkg")
    pure = reachable(modules, ["pkg.pure.window"])
    assert pure.keys() == {"pkg", "pkg.pure", "pkg.pure.window", "pkg.pure.fold", "pkg.helper"}
    assert violations(pure, ["time"]) == ["pkg.helper -> time", "pkg.helper -> time.monotonic"]
    assert violations(pure, ["confluent_kafka"]) == []


def test_checker_follows_relative_imports_of_a_package(tree: Path) -> None:
    modules = imports_under(tree, "pkg")
    assert "pkg.clients.reader" in reachable(modules, ["pkg.clients"])
    assert violations(reachable(modules, ["pkg.clients"]), ["confluent_kafka"]) == [
        "pkg.clients.reader -> confluent_kafka"
    ]
