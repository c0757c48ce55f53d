"""What the containers of a Kubernetes manifest would run, as processes of this machine.

A container becomes a process with the arguments of the manifest and the entry point of the image. Its
variables are those of the manifest, with two exceptions. A path leads into a folder of the pod, where the
volumes are. Each port is a free one.
"""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
from stoplog_gateway.ports import free_port

from tests.support.broker import CHECKOUT
from tests.support.helm import by_kind
from tests.support.system import STACKS, Process, eventually

GATEWAY_IMAGE: Final = CHECKOUT / "tests" / "support" / "gateway_image"
"""Folder of a module that hides the packages that the image of gateways does not have."""

_PORTS: Final = ("STOPLOG_PORT", "STOPLOG_METRICS_PORT", "STOPLOG_ENVOY")


class Pod:
    """A pod of a workload.

    Args:
        workload: The manifest of a Deployment, a Job or a StatefulSet.
        manifests: All manifests, with the ConfigMaps and Secrets that the pod mounts.
        folder: An empty folder for its volumes and logs.
        name: Its name.

    Attributes:
        grace_s: Seconds from SIGTERM to SIGKILL.
    """

    def __init__(
        self, workload: Mapping[str, Any], manifests: list[dict[str, Any]], folder: Path, name: str
    ) -> None:
        self.name = name
        self._folder = folder
        self._manifests = manifests
        self._claims = [one["metadata"]["name"] for one in workload["spec"].get("volumeClaimTemplates", ())]
        self._spec: dict[str, Any] = workload["spec"]["template"]["spec"]
        self._ports: dict[int, int] = {}
        self.grace_s: int = self._spec.get("terminationGracePeriodSeconds", 30)

    @property
    def first_containers(self) -> list[dict[str, Any]]:
        """The containers that run to their end, one after the other, before the others start."""
        return list(self._spec.get("initContainers", ()))

    @property
    def containers(self) -> list[dict[str, Any]]:
        """The other containers."""
        return list(self._spec["containers"])

    def path(self, inside: str) -> Path:
        """Return where a path of the containers is on this machine."""
        return self._folder / inside.lstrip("/")

    def process(self, container: Mapping[str, Any]) -> Process:
        """Return the process of a container, not started, with its volumes in place."""
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        self._mount(mounts)
        env = {}
        for variable in container["env"]:
            value = variable.get("value")
            if value is None:
                assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
                value = self.name
            if any(value == mount or value.startswith(f"{mount}/") for mount in mounts.values()):
                value = str(self.path(value))
            if variable["name"] in _PORTS:
                value = re.sub(r"[0-9]+$", lambda found: str(self._port(int(found[0]))), value)
            env[variable["name"]] = value
        packages = GATEWAY_IMAGE if "gateway" in container["image"] else STACKS
        return Process(
            f"{self.name}/{container['name']}",
            [sys.executable, "-m", "stoplog_gateway", *container["args"]],
            env={**env, "PYTHONPATH": str(packages)},
            log=self._folder / f"{container['name']}.log",
        )

    def probe(self, container: Mapping[str, Any], kind: str) -> int | None:
        """Return the status that a probe of a container gets (``startup``); ``None`` if nothing answers."""
        get = container[f"{kind}Probe"]["httpGet"]
        try:
            url = f"{self.url(container, get['port'])}{get['path']}"
            return httpx.get(url, timeout=60, trust_env=False).status_code
        except httpx.TransportError:
            return None

    def wait_started(self, container: Mapping[str, Any], on_failure: Callable[[], str]) -> None:
        """Return once the startup probe of a container succeeds."""
        eventually(
            f"{self.name} has started",
            lambda: self.probe(container, "startup") == 200,
            on_failure=on_failure,
        )

    def url(self, container: Mapping[str, Any], port: str) -> str:
        """Return the address of a named port of a container."""
        [number] = (one["containerPort"] for one in container["ports"] if one["name"] == port)
        return f"http://127.0.0.1:{self._ports[number]}"

    def _port(self, inside: int) -> int:
        return self._ports.setdefault(inside, free_port())

    def _mount(self, mounts: Mapping[str, str]) -> None:
        volumes = {volume["name"]: volume for volume in self._spec["volumes"]}
        for name, inside in mounts.items():
            folder = self.path(inside)
            folder.mkdir(parents=True, exist_ok=True)
            volume = volumes.get(name, {})
            if "configMap" in volume:
                files = by_kind(self._manifests, "ConfigMap")[volume["configMap"]["name"]]["data"]
            elif "secret" in volume:
                secret = by_kind(self._manifests, "Secret")[volume["secret"]["secretName"]]
                coded = {
                    key: base64.b64decode(value).decode() for key, value in secret.get("data", {}).items()
                }
                files = {**coded, **secret.get("stringData", {})}
                wanted = [item["key"] for item in volume["secret"].get("items", ())] or list(files)
                files = {key: files[key] for key in wanted}
            else:
                assert "emptyDir" in volume or name in self._claims, f"no volume {name}"
                files = {}
            for file, content in files.items():
                (folder / file).write_text(content)
