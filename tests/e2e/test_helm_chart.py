"""The Helm chart's containers as processes, on a broker with TLS, passwords and the rights of its users."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.support.helm import CHART, by_kind, render
from tests.support.pod import Pod
from tests.support.secure_kafka import PASSWORD, SecureKafka, secure_kafka
from tests.support.system import PATIENCE_S, Process, eventually
from tests.support.up import environment, stoplog

USERS: Final = ("admin", "gateway", "operator", "worker")


def secret(name: str, **content: str) -> dict[str, Any]:
    """Return a Secret, as an administrator or Strimzi creates it."""
    return {"kind": "Secret", "metadata": {"name": name}, "stringData": content}


def grant(kafka: SecureKafka, user: dict[str, Any]) -> None:
    """Give the user the rights of a KafkaUser, as Strimzi does."""
    for acl in user["spec"]["authorization"]["acls"]:
        operations = " ".join(f"--operation {operation}" for operation in acl["operations"])
        resource = acl["resource"]
        kafka.grant(
            f"kafka-acls.sh --add --allow-principal User:{user['metadata']['name']} {operations} "
            f"--{resource['type']} {resource['name']}"
        )


@pytest.mark.needs("helm")
def test_containers_of_the_example_with_two_zones_make_a_system(tmp_path: Path) -> None:
    with ExitStack() as stack:
        kafka = stack.enter_context(secure_kafka(*(f"stoplog-{role}" for role in USERS), topics=False))
        added = stoplog(
            *("tokens", "add", "ops", "--scope", "admin", "--file", str(tmp_path / "tokens")),
            env=environment(tmp_path),
        )
        assert added.returncode == 0, added.stderr
        manifests = render(
            CHART / "examples" / "two-zones.yaml",
            kafka__bootstrap=kafka.broker.address("scram"),
            topics__partitions=2,
            topics__replication=1,
            topics__minInsync=1,
            lanes=[{"name": lane, "replicas": 1, "zone": f"zone-{lane}"} for lane in "ab"],
            # A busy machine does not miss this deadline, so no check fails open.
            gateway__settings={"STOPLOG_DEADLINE_MS": 20_000, "STOPLOG_APPLY_TIMEOUT_MS": 25_000},
            gateway__drainSeconds=600,
            gateway__envoy=True,
            tokens={"secret": "", "content": (tmp_path / "tokens").read_text(), "required": True},
            strimzi__topics=False,
        )
        for user in by_kind(manifests, "KafkaUser").values():
            if user["metadata"]["name"].removeprefix("stoplog-") in USERS:
                grant(kafka, user)
        manifests += [secret(f"stoplog-{role}", password=PASSWORD) for role in USERS]
        manifests.append(secret("prod-cluster-ca-cert", **{"ca.crt": (kafka.files / "ca.pem").read_text()}))

        def run(process: Process) -> Process:
            def end() -> None:
                if process.status is None:
                    process.kill()

            process.start()
            stack.callback(end)
            return process

        def pod(kind: str, workload: str, name: str) -> Pod:
            return Pod(by_kind(manifests, kind)[workload], manifests, tmp_path / name, name)

        job = pod("Job", "stoplog-topics-1", "topics")
        for container in (*job.first_containers, *job.containers):
            process = run(job.process(container))
            process.join(PATIENCE_S)
            assert process.status == 0, process.tail()
        assert "all topics exist" in process.tail()

        workers = []
        for lane in "ab":
            name = f"stoplog-worker-{lane}"
            worker = pod("StatefulSet", name, f"{name}-0")
            [container] = worker.containers
            workers.append((worker, container, run(worker.process(container))))
        gateway = pod("Deployment", "stoplog-gateway", "stoplog-gateway-7d4b9c-x2x7k")
        [container] = gateway.containers
        serving = run(gateway.process(container))
        for worker, its, process in workers:
            worker.wait_started(its, process.tail)
            assert worker.probe(its, "liveness") == worker.probe(its, "readiness") == 200
        gateway.wait_started(container, serving.tail)
        assert gateway.probe(container, "liveness") == gateway.probe(container, "readiness") == 200

        url = gateway.url(container, "http")
        headers = {"Authorization": f"Bearer {added.stdout.split()[-1]}"}
        http = stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False))
        eventually(
            "the store answers",
            lambda: http.get("/readyz?strict=1").status_code == 200,
            on_failure=lambda: "\n".join(one.tail() for one in (serving, *(it[2] for it in workers))),
        )
        assert httpx.post(f"{url}/v1/check", json={"client_id": "alice"}, timeout=60).status_code == 401
        change = http.put("/v1/limits/alice", json={"limits": ["2/hour"]})
        assert change.json()["applied"], change.text
        answers = [http.post("/v1/check", json={"client_id": "alice"}).json() for _ in range(3)]
        assert [(one["allowed"], one["degraded"]) for one in answers] == [
            (True, False),
            (True, False),
            (False, False),
        ]

        def nodes() -> set[tuple[str, str]]:
            found: list[dict[str, Any]] = http.get("/v1/status").json()["nodes"]
            return {
                (node["lane"], node["id"].partition("@")[0]) for node in found if node["role"] == "worker"
            }

        # Each worker has the name of its pod, and its tables in its volume.
        eventually("both workers are known", lambda: nodes() == {(x, f"stoplog-worker-{x}-0") for x in "ab"})
        for worker, _, process in workers:
            assert any(worker.name in path.name for path in worker.path("/data").rglob("*"))
            assert process.stop() == 0, process.tail()

        # Kubernetes sends SIGTERM, and the load balancer sees the probe before the listener closes.
        serving.signal(signal.SIGTERM)
        drains = partial(gateway.probe, container, "readiness")
        eventually("the gateway is not ready", lambda: drains() == 503, on_failure=serving.tail)
        assert gateway.probe(container, "liveness") == 200
        assert serving.stop() == 0, serving.tail()  # a second signal ends the drain
