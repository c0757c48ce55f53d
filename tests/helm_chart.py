"""``python -m tests.helm_chart``: write those files of docker/helm/stoplog that follow from others.

==================  ====================================================================================
file                source
==================  ====================================================================================
README.md           the descriptions in values.schema.json, and the defaults in values.yaml
files/topics.yaml   docker/topics.yaml, and the configuration that :mod:`stoplog.topics` derives from it
files/access.yaml   the rights of each role (:mod:`stoplog.kafka.acls`)
files/alerts.yml    docker/prometheus/alerts.yml
==================  ====================================================================================

A chart can read files of its own folder only. A test fails if one is not current.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from stoplog.kafka.acls import ROLES, Grant, grants
from stoplog.lanes import app_id, with_lanes
from stoplog.topics import COPARTITIONED, COUNTERS_CHANGELOG, POLICIES_CHANGELOG, TopicSpec, load_topics
from tests.support.broker import CHECKOUT

CHART: Final = CHECKOUT / "docker" / "helm" / "stoplog"

_NOTE: Final = "# Written by `python -m tests.helm_chart`; do not edit.\n"

_LANE: Final = "lane"
"""Stands for any lane but the default one."""

_README: Final = """\
# Helm chart of Stoplog

<!-- written by `python -m tests.helm_chart` from values.schema.json and values.yaml; do not edit -->

The chart runs workers and gateways beside a Kafka of yours: workers as one StatefulSet for each
[lane](../../../docs/lanes.md), gateways as a Deployment that scales with its CPU. It needs
Kubernetes 1.29 or newer, and images in a registry of yours:

<!-- needs: docker -->
```sh
docker build --file docker/Dockerfile --target gateway --tag registry.example/stoplog-gateway .
docker build --file docker/Dockerfile --tag registry.example/stoplog .
```

The tests render this chart with Helm 4, validate the result against the API schemas of Kubernetes
1.29 and 1.33, and run what each container would run against a real broker. It was not installed in
a cluster.

## Install

1. Create a tokens file: `stoplog tokens add ops --scope admin --file tokens` prints a token, once.
   `kubectl create secret generic stoplog-tokens --from-file=tokens` stores its digest.
2. Choose the number of [partitions](#how-many-partitions).
3. Install:

<!-- needs: cluster -->
```sh
helm install stoplog docker/helm/stoplog \\
  --set kafka.bootstrap=kafka.example:9092 --set tokens.secret=stoplog-tokens \\
  --set image.gateway.repository=registry.example/stoplog-gateway \\
  --set image.worker.repository=registry.example/stoplog
```

[examples/two-zones.yaml](examples/two-zones.yaml) has two lanes in two zones, with Strimzi and the
Prometheus operator. It is the example for production.

- A Job creates the missing topics and records the number of partitions. Until then, workers end
  with an error, and Kubernetes starts them again.
- A worker's instance id is the name of its pod. A restarted worker finds its tables in its volume,
  and takes its partitions back if it returns within `worker.sessionTimeoutMs`.
- [Upgrading](../../../docs/upgrading.md) has the order of an upgrade. The chart's workers and
  gateways have images of their own, so that you can upgrade workers first.

- Gateways serve HTTP and gRPC without TLS: put a proxy or a service mesh in front of them. The chart
  has no values for `OAUTHBEARER`.

## How many partitions

The recommended number is the larger of the number of workers of a lane and
`topics.expectedChecksPerSecond` / 10,000, rounded up to a power of two
([why](../../../docs/operations.md#how-many-partitions)). `helm install` prints it if
`topics.partitions` is lower.

## How many gateways

Gateways share the partitions of `replies`. If there are more gateway processes than partitions,
each also reads the replies of others, which takes CPU. In programs with the SDK, it [took 60 to 85
µs](../../../docs/benchmarks.md#where-the-time-of-a-check-goes) for each reply; gateways were not
measured. The chart refuses `autoscaling.maxReplicas` times `processes` above
`topics.replyPartitions`. The autoscaler adds gateways at 70 % of one core for each process.

## Growing

[`stoplog topics grow`](../../../docs/operations.md#growing) runs as a Job with the image of workers
and a user of its own. With Strimzi, add `grower` to `strimzi.further`: that creates the KafkaUser
and the Secret `stoplog-grower`. Otherwise, create a user with the rights of
`stoplog topics acls --role grower`.

The command copies all changelogs to `/tmp`. They take as much space as the workers' tables of all
partitions and lanes. That can exceed the 256 MiB that pods of this chart have there, so give this
Job more. This example is for the release `stoplog` and the values of
[examples/two-zones.yaml](examples/two-zones.yaml):

```yaml
apiVersion: batch/v1
kind: Job
metadata: {name: stoplog-grow}
spec:
  backoffLimit: 0                       # read the log before you run it again
  template:
    metadata:
      labels:                           # those of the chart's network policy
        app.kubernetes.io/name: stoplog
        app.kubernetes.io/instance: stoplog
        app.kubernetes.io/component: topics
    spec:
      restartPolicy: Never
      securityContext: {runAsNonRoot: true, runAsUser: 10001, runAsGroup: 10001, fsGroup: 10001}
      containers:
        - name: grow
          image: registry.example/stoplog   # with the tag of the workers
          args: [topics, grow, "8"]
          env:
            - {name: STOPLOG_KAFKA, value: "prod-kafka-bootstrap:9093"}
            - {name: STOPLOG_TOPICS, value: /etc/stoplog/topics/topics.yaml}
            - {name: STOPLOG_KAFKA_SECURITY_PROTOCOL, value: SASL_SSL}
            - {name: STOPLOG_KAFKA_CA_FILE, value: /etc/stoplog/kafka-ca/ca.crt}
            - {name: STOPLOG_KAFKA_SASL_MECHANISM, value: SCRAM-SHA-512}
            - {name: STOPLOG_KAFKA_USERNAME, value: stoplog-grower}
            - {name: STOPLOG_KAFKA_PASSWORD_FILE, value: /etc/stoplog/kafka-grower/password}
          volumeMounts:
            - {name: topics, mountPath: /etc/stoplog/topics, readOnly: true}
            - {name: tmp, mountPath: /tmp}
            - {name: kafka-ca, mountPath: /etc/stoplog/kafka-ca, readOnly: true}
            - {name: kafka-grower, mountPath: /etc/stoplog/kafka-grower, readOnly: true}
      volumes:
        - {name: topics, configMap: {name: stoplog-topics}}
        - {name: tmp, emptyDir: {sizeLimit: 8Gi}}
        - {name: kafka-ca, secret: {secretName: prod-cluster-ca-cert}}
        - {name: kafka-grower, secret: {secretName: stoplog-grower}}
```

Before the Job, stop your own producers of `checks`. After it, set `topics.partitions` to the new
number with `helm upgrade`, remove `grower` from `strimzi.further`, and delete the Job. With
`args: [topics, grow, "8", --dry-run]`, the Job prints an estimate and changes nothing.

## Values

"""


def _flat(schema: Mapping[str, Any], defaults: Any, path: str = "") -> Iterator[str]:
    """Yield a row for each value that has no values below it."""
    if schema.get("additionalProperties") is False and "properties" in schema:
        for name, below in schema["properties"].items():
            if name != "global":
                inner = defaults.get(name) if isinstance(defaults, Mapping) else None
                yield from _flat(below, inner, f"{path}.{name}" if path else name)
        return
    default = "" if defaults in ("", None) else f"`{json.dumps(defaults, ensure_ascii=False)}`"
    if "enum" in schema:
        choices = ", ".join(f"`{choice}`" for choice in schema["enum"])
        yield f"| `{path}` | {default} | {schema['description']} One of {choices}. |"
    else:
        yield f"| `{path}` | {default} | {schema['description']} |"
    items = schema.get("items", {})
    for name, below in items.get("properties", {}).items() if "description" in items else ():
        yield f"| `{path}[].{name}` | | {below['description']} |"


def _readme() -> str:
    schema = json.loads((CHART / "values.schema.json").read_text())
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    rows = "\n".join(_flat(schema, defaults))
    return f"{_README}| value | default | meaning |\n| :-- | :-- | :-- |\n{rows}\n"


def _topics() -> str:
    source = yaml.safe_load((CHECKOUT / "docker" / "topics.yaml").read_text())
    topics = source["topics"]
    for topic in topics.values():
        del topic["partitions"]  # or an own value: the templates add it
    for fixed in ("dead-letters", "nodes"):
        topics[fixed]["partitions"] = 1
    specs = load_topics(CHECKOUT / "docker" / "topics.yaml")
    content = {
        "topics": topics,
        "copartitioned": list(COPARTITIONED),
        "changelogs": [COUNTERS_CHANGELOG, POLICIES_CHANGELOG],
        "kafka": {name: _kafka_config(spec) for name, spec in specs.items()},
    }
    return _NOTE + str(yaml.safe_dump(content, sort_keys=False))


def _kafka_config(spec: TopicSpec) -> dict[str, str]:
    config = spec.config()
    del config["min.insync.replicas"]  # a value of the chart
    return config


def _access() -> str:
    topics = load_topics(CHECKOUT / "docker" / "topics.yaml")
    content = {}
    for role in ROLES:
        both = grants(role, with_lanes(topics, ["", _LANE]), ["", _LANE])
        further = [grant for grant in both if app_id(_LANE) in grant.name]
        default = {grant.name.replace(app_id(_LANE), app_id("")) for grant in further}
        content[role] = {
            "common": [_right(grant) for grant in both if grant not in further and grant.name not in default],
            "lane": [_right(grant, grant.name.replace(app_id(_LANE), "APP")) for grant in further],
        }
    return _NOTE + str(yaml.safe_dump(content, sort_keys=False))


def _right(grant: Grant, name: str | None = None) -> dict[str, Any]:
    return {"kind": grant.kind, "name": name or grant.name, "operations": list(grant.operations)}


def _alerts() -> str:
    return _NOTE + (CHECKOUT / "docker" / "prometheus" / "alerts.yml").read_text()


def files() -> dict[Path, str]:
    """Return each file and its current content."""
    return {
        CHART / "README.md": _readme(),
        CHART / "files" / "topics.yaml": _topics(),
        CHART / "files" / "access.yaml": _access(),
        CHART / "files" / "alerts.yml": _alerts(),
    }


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content)
