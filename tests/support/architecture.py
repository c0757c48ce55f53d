"""Read from the sources alone which modules import which. Nothing is executed."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

Imports = Mapping[str, frozenset[str]]
"""The names that each module imports: modules, and ``module.name`` for each name taken from one."""


def imports_under(root: Path, package: str, *, types: bool = True) -> Imports:
    """Return the imports of every module of *package*, a directory in *root*.

    Args:
        root: Directory of the package.
        package: Name of the package.
        types: Include imports under ``if TYPE_CHECKING``, which do not run.
    """
    found = {}
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = frozenset(
            _imported(ast.parse(path.read_text()), name, is_package=is_package, types=types)
        )
    return found


def _imported(tree: ast.Module, module: str, *, is_package: bool, types: bool) -> Iterator[str]:
    """Yield every import of *tree*, also those in functions."""
    for node in _walk(tree, types=types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - 1 if is_package else node.level
                parents = module.split(".")[: len(module.split(".")) - up]
                base = ".".join([*parents, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _walk(node: ast.AST, *, types: bool) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if types or not _is_type_checking(child):
            yield from _walk(child, types=types)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def within(name: str, packages: Collection[str]) -> bool:
    """Return whether *name* is one of *packages* or lies in one.

    >>> within("stoplog.kafka.clients", ["stoplog.kafka"]), within("stoplog_worker", ["stoplog"])
    (True, False)
    """
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def violations(modules: Imports, forbidden: Collection[str]) -> list[str]:
    """Return ``importer -> imported`` for every forbidden import."""
    return sorted(
        f"{module} -> {name}"
        for module, names in modules.items()
        for name in names
        if within(name, forbidden)
    )


def reachable(modules: Imports, starts: Iterable[str]) -> Imports:
    """Return *starts* and all of *modules* that they import, directly or not, with their imports.

    A module's packages are among them: Python runs their ``__init__`` first.
    """
    found: dict[str, frozenset[str]] = {}
    pending = list(starts)
    while pending:
        name = pending.pop()
        if name not in modules or name in found:
            continue
        found[name] = modules[name]
        parts = name.split(".")
        pending.extend(".".join(parts[:length]) for length in range(1, len(parts)))
        pending.extend(found[name])
    return found
