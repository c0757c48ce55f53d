"""Dashboard and alerts of a running system, evaluated by a real Prometheus (Debian's package)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest
import yaml
from confluent_kafka import Producer
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_gateway.ports import free_port

from stoplog.topics import CHECKS
from tests.support.broker import CHECKOUT
from tests.support.programs import path_of
from tests.support.system import Process, System, eventually, running_system

pytestmark = pytest.mark.needs("prometheus")

DOCKER: Final = CHECKOUT / "docker"
ALERTS: Final = DOCKER / "prometheus" / "alerts.yml"
DASHBOARD: Final = json.loads((DOCKER / "grafana" / "dashboards" / "stoplog.json").read_text())
NAME: Final = re.compile(r"\b(?:stoplog|process)_[a-z_]+\b")
FIRING: Final = 'ALERTS{alertstate="firing"}'
PARTS: Final = ("_bucket", "_sum", "_count", "_total")


def queries() -> list[Any]:
    """Return every query of the dashboard, with the panel's title as its id."""
    return [
        pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]


class Watched(NamedTuple):
    prometheus: httpx.Client
    pages: str
    """The metrics of gateway and worker, concatenated."""

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the present samples of *expression*, with its variables replaced as by Grafana."""
        for variable, value in (("$__rate_interval", "5s"), ("$gateway", ".+"), ("$worker", ".+")):
            expression = expression.replace(variable, value)
        answer = self.prometheus.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


@pytest.fixture(scope="module")
def watched(fresh_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    with running_system(fresh_kafka, folder, workers=0, gateways=0) as system:
        metrics_port = free_port()
        system.add_worker(metrics_port=metrics_port)
        gateway = system.add_gateway()
        system.wait_ready()
        targets = {"stoplog-gateway": gateway.url, "stoplog-worker": f"http://127.0.0.1:{metrics_port}"}
        prometheus = _prometheus(system, folder, targets)
        try:
            with httpx.Client(base_url=prometheus.url, timeout=30, trust_env=False) as client:
                _work(system, client, fresh_kafka)
                pages = "".join(httpx.get(f"{url}/metrics", trust_env=False).text for url in targets.values())
                yield Watched(client, pages)
        finally:
            prometheus.stop()


class _Prometheus(Process):
    url: str


def _prometheus(system: System, folder: Path, targets: dict[str, str]) -> _Prometheus:
    shutil.copy(ALERTS, folder)
    jobs = [
        {
            "job_name": job,
            "static_configs": [{"targets": [url.removeprefix("http://")], "labels": {"lane": "a"}}],
        }
        for job, url in targets.items()
    ]
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [ALERTS.name],
        "scrape_configs": jobs,
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        path_of("prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/tsdb",
    ]
    child = _Prometheus(
        "prometheus", [*command, f"--web.listen-address={address}"], env={}, log=folder / "prometheus.log"
    )
    child.url = f"http://{address}"
    child.start()
    return child


def _work(system: System, prometheus: httpx.Client, broker: Broker) -> None:
    """Cause samples of every metric, until Prometheus has scraped them twice: a rate needs two samples."""
    gateway = system.gateways[0]
    gateway.set_limits("alice", "5/minute")

    def has_samples(expression: str) -> bool:
        try:
            answer = prometheus.get("/api/v1/query", params={"query": expression}).json()
        except httpx.TransportError:
            return False
        return bool(answer["data"]["result"])

    def has_samples_under_load(expression: str) -> bool:
        for _ in range(10):
            gateway.check("alice")
        return has_samples(expression)

    eventually(
        "Prometheus has scraped both twice",
        lambda: has_samples_under_load("count(count_over_time(up[30s]) > 3) == 2"),
        on_failure=system.logs,
    )
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    producer.produce(CHECKS, b"not a check", partition=0)
    assert producer.flush(10) == 0
    for expression in (
        "increase(stoplog_worker_dead_letters_total[30s]) > 0",
        "rate(stoplog_worker_flush_entries_count[5s]) > 0",
        "rate(stoplog_check_duration_seconds_count[5s]) > 0",
    ):
        eventually(expression, partial(has_samples_under_load, expression), on_failure=system.logs)


@pytest.mark.parametrize("expression", queries())
def test_dashboard_query_on_running_system_returns_data(watched: Watched, expression: str) -> None:
    assert watched.query(expression), expression


def test_dashboard_shows_exactly_the_exported_metrics(watched: Watched) -> None:
    exported = {
        name.removesuffix("_total")
        for name in re.findall(r"^# TYPE (\S+) ", watched.pages, re.MULTILINE)
        if not name.endswith("_created")
    }
    shown = {
        _family(name)
        for panel in DASHBOARD["panels"]
        for it in panel.get("targets", ())
        for name in NAME.findall(it["expr"])
    }
    assert shown == exported


def test_dashboard_variables_list_gateways_and_workers(watched: Watched) -> None:
    for variable, job in zip(
        DASHBOARD["templating"]["list"], ("stoplog-gateway", "stoplog-worker"), strict=True
    ):
        (metric,) = NAME.findall(variable["definition"])
        assert {sample["metric"]["job"] for sample in watched.query(metric)} == {job}


def test_alert_expressions_name_existing_metrics(watched: Watched) -> None:
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    for name in {name for rule in rules for name in NAME.findall(rule["expr"])}:
        assert watched.query(name), name


def test_alerts_after_faults_fire_exactly_as_expected(watched: Watched) -> None:
    eventually("an alert fires", lambda: bool(watched.query(FIRING)))
    assert {it["metric"]["alertname"] for it in watched.query(FIRING)} == {"StoplogDeadLetters"}


def _family(name: str) -> str:
    for part in PARTS:
        if name.endswith(part):
            return name.removesuffix(part)
    return name
