"""The Helm chart, rendered: the API schemas of Kubernetes, the rest of the project, and refused values."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest
import yaml
from stoplog_gateway.settings import GatewaySettings
from stoplog_worker.settings import Settings as WorkerSettings

from stoplog import __version__
from stoplog.kafka.acls import grants
from stoplog.lanes import with_lanes
from stoplog.topics import COPARTITIONED, load_topics, parse_topics
from tests.helm_chart import CHART, files
from tests.support.broker import CHECKOUT
from tests.support.helm import HelmError, by_kind, helm, render, schema_of

pytestmark = pytest.mark.needs("helm")

TWO_ZONES: Final = CHART / "examples" / "two-zones.yaml"
KAFKA: Final = "kafka.example:9092"
OTHERS: Final = {"KafkaTopic", "KafkaUser", "PrometheusRule", "ServiceMonitor"}
"""Kinds that Kubernetes itself does not have."""


@pytest.fixture(scope="module")
def usual() -> list[dict[str, Any]]:
    """Return what the default values render."""
    return render(kafka__bootstrap=KAFKA)


@pytest.fixture(scope="module")
def zones() -> list[dict[str, Any]]:
    """Return what the example with two zones renders."""
    return render(TWO_ZONES)


def containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the containers of a workload, with those that run first."""
    spec = manifest["spec"]["template"]["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


def variables(container: dict[str, Any]) -> dict[str, str]:
    """Return the variables of a container. Those from a field of the pod have the name of the field."""
    return {
        one["name"]: one["value"] if "value" in one else one["valueFrom"]["fieldRef"]["fieldPath"]
        for one in container["env"]
    }


def workloads(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in manifests if one["kind"] in ("Deployment", "Job", "StatefulSet")]


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_generated_file_is_current(path: Path) -> None:
    assert path.read_text() == files()[path], "run `python -m tests.helm_chart`"


@pytest.mark.parametrize("values", [["--set", f"kafka.bootstrap={KAFKA}"], ["--values", str(TWO_ZONES)]])
def test_helm_lint_finds_nothing(values: list[str]) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", CHART, *values)


def test_chart_has_the_version_of_stoplog() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


def test_every_value_has_a_description_and_a_default() -> None:
    def walk(schema: dict[str, Any], defaults: Any, path: str) -> None:
        assert schema.get("description") or not path, path
        for name, below in schema.get("properties", {}).items():
            if name != "global":
                assert name in defaults, f"{path}.{name}"
                walk(below, defaults[name], f"{path}.{name}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    walk(schema, yaml.safe_load((CHART / "values.yaml").read_text()), "")


@pytest.mark.parametrize("version", ["1.29.0", "1.33.0"])
@pytest.mark.parametrize("which", ["usual", "zones"])
def test_manifests_satisfy_the_schemas_of_kubernetes(
    which: str, version: str, request: pytest.FixtureRequest
) -> None:
    kinds = set()
    for manifest in request.getfixturevalue(which):
        schema = schema_of(manifest, version)
        assert (schema is None) == (manifest["kind"] in OTHERS), manifest["kind"]
        if schema is not None:
            jsonschema.Draft202012Validator(schema).validate(manifest)
            kinds.add(manifest["kind"])
    assert {"Deployment", "HorizontalPodAutoscaler", "NetworkPolicy", "PodDisruptionBudget"} < kinds


def test_schema_refuses_an_unknown_field() -> None:
    [job] = by_kind(render(kafka__bootstrap=KAFKA), "Job").values()
    job["spec"]["maxUnavailible"] = 1
    schema = schema_of(job, "1.33.0")
    assert schema is not None
    with pytest.raises(jsonschema.ValidationError, match="maxUnavailible"):
        jsonschema.Draft202012Validator(schema).validate(job)


@pytest.mark.parametrize("which", ["usual", "zones"])
def test_variables_are_settings_with_valid_values(
    which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workload in workloads(request.getfixturevalue(which)):
        for container in containers(workload):
            kind = WorkerSettings if container["args"] == ["worker"] else GatewaySettings
            found = variables(container)
            assert found.keys() <= {f"STOPLOG_{field.upper()}" for field in kind.model_fields}
            with monkeypatch.context() as patch:
                for name, value in found.items():
                    # The files of Secrets are mounted in a cluster only. Processes need no patience here.
                    if not name.endswith("_FILE") and not name.startswith("STOPLOG_KAFKA_"):
                        patch.setenv(name, value)
                assert kind().topics == Path("/etc/stoplog/topics/topics.yaml")


@pytest.mark.parametrize("which", ["usual", "zones"])
def test_mounts_have_volumes_and_files_are_in_mounts(which: str, request: pytest.FixtureRequest) -> None:
    for workload in workloads(request.getfixturevalue(which)):
        spec = workload["spec"]["template"]["spec"]
        claims = {one["metadata"]["name"] for one in workload["spec"].get("volumeClaimTemplates", ())}
        volumes = {one["name"] for one in spec["volumes"]}
        mounted = set()
        for container in containers(workload):
            mounted |= {mount["name"] for mount in container["volumeMounts"]}
            folders = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert "/tmp" in folders  # the root is read-only
            for name, value in variables(container).items():
                if value.startswith("/"):
                    assert value in folders or str(Path(value).parent) in folders, name
        assert mounted == volumes | claims


@pytest.mark.parametrize("which", ["usual", "zones"])
def test_pods_have_no_needless_rights(which: str, request: pytest.FixtureRequest) -> None:
    for workload in workloads(request.getfixturevalue(which)):
        spec = workload["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"]
        assert f"USER {spec['securityContext']['runAsUser']}:" in (CHECKOUT / "docker/Dockerfile").read_text()
        for container in containers(workload):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert not security["allowPrivilegeEscalation"]


@pytest.mark.parametrize("drain", [0, 15, 120])
def test_grace_period_covers_the_drain_and_the_rest_of_a_stop(drain: int) -> None:
    [gateway] = by_kind(render(kafka__bootstrap=KAFKA, gateway__drainSeconds=drain), "Deployment").values()
    spec = gateway["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] >= GatewaySettings(drain_s=drain).stop_s
    assert variables(containers(gateway)[0])["STOPLOG_DRAIN_S"] == str(drain)


def test_probes_are_those_of_the_operations_guide(usual: list[dict[str, Any]]) -> None:
    [gateway] = by_kind(usual, "Deployment").values()
    [container] = containers(gateway)
    probes = {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/readyz", "liveness": "/healthz", "readiness": "/readyz"}
    assert {probe["timeoutSeconds"] for probe in probes.values()} == {5}
    settings = variables(container)
    patience_s = probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"]
    assert patience_s > float(settings["STOPLOG_STARTUP_S"])
    readiness = probes["readiness"]
    assert float(settings["STOPLOG_DRAIN_S"]) > 2 * readiness["periodSeconds"] * readiness["failureThreshold"]


def test_gateways_scale_at_70_percent_of_a_core_for_each_process(zones: list[dict[str, Any]]) -> None:
    [scaler] = by_kind(zones, "HorizontalPodAutoscaler").values()
    [metric] = scaler["spec"]["metrics"]
    assert metric["resource"] == {
        "name": "cpu",
        "target": {"type": "AverageValue", "averageValue": "1400m"},
    }
    [gateway] = by_kind(zones, "Deployment").values()
    assert "replicas" not in gateway["spec"]  # an upgrade must not undo what the autoscaler did
    assert scaler["spec"]["scaleTargetRef"]["name"] == gateway["metadata"]["name"]


def test_workers_have_permanent_names_tables_and_a_zone_by_lane(zones: list[dict[str, Any]]) -> None:
    sets = by_kind(zones, "StatefulSet")
    assert len(sets) == 2
    for lane, zone in (("a", "eu-central-1a"), ("b", "eu-central-1b")):
        workers = sets[f"stoplog-worker-{lane}"]["spec"]
        spec = workers["template"]["spec"]
        assert spec["nodeSelector"] == {"topology.kubernetes.io/zone": zone}
        settings = variables(spec["containers"][0])
        assert (settings["STOPLOG_LANE"], settings["STOPLOG_INSTANCE_ID"]) == (lane, "metadata.name")
        assert settings["STOPLOG_HOME"] == "/data"
        assert workers["volumeClaimTemplates"][0]["metadata"]["name"] == "data"
        # streams/stoplog_worker/worker.py gives a worker 20 s
        assert spec["terminationGracePeriodSeconds"] > 20


def test_disruption_budgets_and_policies_select_pods_of_the_chart(zones: list[dict[str, Any]]) -> None:
    pods = [one["spec"]["template"]["metadata"]["labels"] for one in workloads(zones)]
    selectors = [
        one["spec"]["selector"]["matchLabels"] for one in by_kind(zones, "PodDisruptionBudget").values()
    ]
    assert len(selectors) == 3  # gateways, and the workers of each lane
    selectors += [
        one["spec"]["podSelector"]["matchLabels"] for one in by_kind(zones, "NetworkPolicy").values()
    ]
    selectors += [one["spec"]["selector"] for one in by_kind(zones, "Service").values()]
    for selector in selectors:
        assert any(selector.items() <= labels.items() for labels in pods), selector
    for labels in pods:
        assert any(
            one["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
            for one in by_kind(zones, "NetworkPolicy").values()
        )


def test_example_of_a_job_that_grows_connects_as_the_jobs_of_the_chart(zones: list[dict[str, Any]]) -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    example = yaml.safe_load(text)
    for version in ("1.29.0", "1.33.0"):
        schema = schema_of(example, version)
        assert schema is not None
        jsonschema.Draft202012Validator(schema).validate(example)
    [job] = by_kind(zones, "Job").values()
    [grow], [record] = containers(example), containers(job)
    for part in ("env", "volumeMounts"):
        assert grow[part] == json.loads(json.dumps(record[part]).replace("admin", "grower"))
    volumes = {one["name"] for one in example["spec"]["template"]["spec"]["volumes"]}
    assert volumes == {mount["name"] for mount in grow["volumeMounts"]}
    labels = example["spec"]["template"]["metadata"]["labels"]
    assert labels.items() <= job["spec"]["template"]["metadata"]["labels"].items()
    policy = by_kind(zones, "NetworkPolicy")["stoplog-topics"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_network_policies_permit_kafka_and_names_only(zones: list[dict[str, Any]]) -> None:
    for policy in by_kind(zones, "NetworkPolicy").values():
        names, kafka = policy["spec"]["egress"]
        assert {one["port"] for one in names["ports"]} == {53}
        assert kafka["ports"] == [{"port": 9093}]
        assert kafka["to"] == [{"podSelector": {"matchLabels": {"strimzi.io/cluster": "prod"}}}]


def test_topics_file_has_the_numbers_of_the_values() -> None:
    manifests = render(
        kafka__bootstrap=KAFKA, topics__partitions=8, topics__replication=2, topics__minInsync=1
    )
    [config] = by_kind(manifests, "ConfigMap").values()
    found = parse_topics(config["data"]["topics.yaml"].encode(), Path("topics.yaml"))
    usual = load_topics(CHECKOUT / "docker" / "topics.yaml")
    assert {name: spec.config() for name, spec in found.items()} == {
        name: {**spec.config(), "min.insync.replicas": "1"} for name, spec in usual.items()
    }
    assert {spec.replication for spec in found.values()} == {2}
    assert {found[name].partitions for name in COPARTITIONED} == {8}
    others = {name: spec.partitions for name, spec in found.items() if name not in COPARTITIONED}
    assert others == {"replies": 32, "dead-letters": 1, "nodes": 1}


def test_topics_of_strimzi_are_those_of_the_topics_file(zones: list[dict[str, Any]]) -> None:
    [config] = by_kind(zones, "ConfigMap").values()
    wanted = with_lanes(parse_topics(config["data"]["topics.yaml"].encode(), Path("topics.yaml")), ["", "b"])
    found = by_kind(zones, "KafkaTopic")
    assert found.keys() == wanted.keys()
    for name, spec in wanted.items():
        assert found[name]["metadata"]["labels"]["strimzi.io/cluster"] == "prod"
        assert found[name]["spec"] == {
            "topicName": name,
            "partitions": spec.partitions,
            "replicas": spec.replication,
            "config": spec.config(),
        }


def test_users_of_strimzi_have_the_rights_of_the_command(zones: list[dict[str, Any]]) -> None:
    topics = with_lanes(load_topics(), ["", "b"])
    users = by_kind(zones, "KafkaUser")
    assert users.keys() == {f"stoplog-{role}" for role in ("admin", "gateway", "operator", "sdk", "worker")}
    for name, user in users.items():
        assert user["apiVersion"] == "kafka.strimzi.io/v1"
        assert user["spec"]["authentication"] == {"type": "scram-sha-512"}
        found = {
            (acl["resource"]["type"], acl["resource"]["name"], tuple(acl["operations"]))
            for acl in user["spec"]["authorization"]["acls"]
        }
        assert found == set(grants(name.removeprefix("stoplog-"), topics, ["", "b"]))


def test_lane_with_a_name_of_its_own_has_the_topics_and_rights_of_that_name() -> None:
    lanes = [{"name": "a", "replicas": 1}, {"name": "west", "replicas": 1}]
    manifests = render(TWO_ZONES, lanes=lanes)
    topics = with_lanes(load_topics(), ["", "west"])
    assert by_kind(manifests, "KafkaTopic").keys() == topics.keys()
    worker = by_kind(manifests, "KafkaUser")["stoplog-worker"]
    names = {acl["resource"]["name"] for acl in worker["spec"]["authorization"]["acls"]}
    assert names == {grant.name for grant in grants("worker", topics, ["", "west"])}
    [job] = by_kind(manifests, "Job").values()
    assert [one["args"] for one in containers(job)] == [["topics", "create", "--lane", "west"]]


def test_alerts_and_jobs_are_those_of_the_project(zones: list[dict[str, Any]]) -> None:
    [rule] = by_kind(zones, "PrometheusRule").values()
    assert rule["spec"] == yaml.safe_load((CHECKOUT / "docker" / "prometheus" / "alerts.yml").read_text())
    jobs = yaml.safe_load((CHECKOUT / "docker" / "prometheus" / "prometheus.yml").read_text())
    monitors = by_kind(zones, "ServiceMonitor").values()
    [*endpoints] = (endpoint for one in monitors for endpoint in one["spec"]["endpoints"])
    assert {rules["relabelings"][0]["replacement"] for rules in endpoints} == {
        job["job_name"] for job in jobs["scrape_configs"]
    }
    services = by_kind(zones, "Service").values()
    for one in monitors:
        selected = [
            service
            for service in services
            if one["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        ]
        assert selected
        for service in selected:
            assert one["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize(
    ("checks", "replicas", "recommended"), [(0, 1, 1), (10_001, 1, 2), (40_000, 2, 4), (40_000, 5, 8)]
)
def test_notes_recommend_the_partitions_of_the_operations_guide(
    checks: int, replicas: int, recommended: int
) -> None:
    options = {
        "kafka.bootstrap": KAFKA,
        "topics.partitions": 1,
        "topics.expectedChecksPerSecond": checks,
        "lanes": [{"name": "a", "replicas": replicas}],
    }
    arguments = [f"--set-json={path}={json.dumps(value)}" for path, value in options.items()]
    notes = helm("install", "stoplog", CHART, "--dry-run=client", *arguments)
    found = f"{recommended} are recommended" in notes
    assert found == (recommended > 1), notes[-600:]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gateway__autoscaling__maxReplicas": 33}, "33 replicas of 1 processes are 33 readers of replies"),
        ({"gateway__processes": 5}, "8 replicas of 5 processes are 40 readers of replies, above its 32"),
        (
            {"gateway__autoscaling__enabled": False, "gateway__replicas": 33},
            "gateway.replicas: 33 replicas of 1 processes",
        ),
        ({"gateway__autoscaling__minReplicas": 9}, "minReplicas: above maxReplicas"),
        ({"lanes": [{"name": "b", "replicas": 1}]}, "the default lane a is missing"),
        ({"lanes": [{"name": "a", "replicas": 1}] * 2}, "occurs twice"),
        ({"topics__minInsync": 4}, "topics.minInsync: above topics.replication"),
        ({"tokens__required": True}, "tokens.required: there are no tokens"),
        ({"strimzi__topics": True}, "strimzi.cluster: missing"),
        ({"strimzi__users": True, "strimzi__cluster": "k"}, "kafka.authentication: Strimzi's users need"),
        ({"gateway__settings": {"STOPLOG_PORT": 80}}, "gateway.settings.STOPLOG_PORT: the chart sets"),
        ({"gateway__settings": {"PORT": 80}}, "PORT"),
        ({"kafka__bootstrap": ""}, "bootstrap"),
        ({"gateway__proceses": 2}, "proceses"),
        ({"lanes": [{"name": "Ä", "replicas": 1}]}, "name"),
    ],
)
def test_contradicting_or_unknown_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HelmError, match=message.replace(".", r"\.")):
        render(**{"kafka__bootstrap": KAFKA, **values})


def test_as_many_gateway_processes_as_partitions_are_accepted() -> None:
    assert render(kafka__bootstrap=KAFKA, gateway__processes=4)
