"""Hide the packages that the image of gateways does not have.

Python imports a module of this name at its start, if PYTHONPATH has this folder. The image contains the
packages of docker/gateway.lock.
"""

import re
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType


class _Installed(MetaPathFinder):
    """Finds the packages of the image, and the standard library."""

    def __init__(self) -> None:
        lock = Path(__file__).resolve().parents[3] / "docker" / "gateway.lock"
        inside = {"stoplog", *re.findall(r"^([a-z0-9.-]+)==", lock.read_text(), re.MULTILINE)}
        self._hidden = {
            module
            for module, owners in packages_distributions().items()
            if inside.isdisjoint(re.sub(r"[-_.]+", "-", owner).lower() for owner in owners)
        }

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if fullname in self._hidden else PathFinder.find_spec(fullname, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = _Installed()
