"""The benchmark harness and the code that it measures share no names: a search finds only one of them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.support.broker import CHECKOUT

MEASURED = ("stoplog", "gateway/stoplog_gateway", "streams/stoplog_worker")
SHARED = frozenset({"main", "app", "check"})
"""Every program has a ``main``. ``app`` and ``check`` belong to a peer's FastAPI application."""


def files_in(folders: Iterable[str]) -> list[Path]:
    return [path for folder in folders for path in (CHECKOUT / folder).rglob("*.py")]


def public_names(files: Iterable[Path]) -> Iterator[str]:
    """Yield the public names that *files* define at their top level."""
    for path in files:
        for node in ast.parse(path.read_text()).body:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    names = [node.name]
                case ast.Assign():
                    names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                case ast.AnnAssign(target=ast.Name(id=name)):
                    names = [name]
                case _:
                    names = []
            yield from (name for name in names if not name.startswith("_"))


def test_harness_and_the_measured_code_have_no_module_name_in_common() -> None:
    harness = {path.stem for path in files_in(["tests/benchmarks"])}
    measured = {path.stem for path in files_in(MEASURED)}
    assert "judge" in harness
    assert "batcher" in measured
    assert harness & measured <= {"__init__"}


def test_harness_and_the_measured_code_have_no_public_name_in_common() -> None:
    harness = set(public_names(files_in(["tests/benchmarks"])))
    measured = set(public_names(files_in(MEASURED)))
    assert "BenchCase" in harness
    assert "Batcher" in measured
    assert harness & measured <= SHARED
