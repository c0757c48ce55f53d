"""Print access rights as commands of Kafka, or as resources of Strimzi."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from stoplog.kafka.acls import Grant


def kafka_acls_commands(bootstrap: str, rights: Mapping[str, Sequence[Grant]]) -> Iterable[str]:
    """Yield the commands of Kafka's ``kafka-acls.sh`` that grant *rights* to each principal.

    Args:
        bootstrap: Bootstrap servers.
        rights: Grants by principal.
    """
    for principal, grants in rights.items():
        resources: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for grant in grants:
            resources.setdefault((grant.kind, grant.operations), []).append(grant.name)
        for (kind, operations), names in resources.items():
            words = ["kafka-acls.sh", "--bootstrap-server", bootstrap]
            words += ["--command-config", "admin.properties", "--add", "--allow-principal", principal]
            words += [word for operation in operations for word in ("--operation", operation)]
            words += [word for name in names for word in (f"--{kind}", name)]
            yield shlex.join(words)


def strimzi_users(rights: Mapping[str, Sequence[Grant]], cluster: str, authentication: str) -> str:
    """Return one KafkaUser of Strimzi for each principal, as YAML.

    Args:
        rights: Grants by principal, whose names begin with ``User:``.
        cluster: Name of the Kafka resource.
        authentication: Strimzi's ``authentication.type``.
    """
    users: list[dict[str, Any]] = [
        {
            "apiVersion": "kafka.strimzi.io/v1",
            "kind": "KafkaUser",
            "metadata": {
                "name": principal.removeprefix("User:"),
                "labels": {"strimzi.io/cluster": cluster},
            },
            "spec": {
                "authentication": {"type": authentication},
                "authorization": {"type": "simple", "acls": [_acl(grant) for grant in grants]},
            },
        }
        for principal, grants in rights.items()
    ]
    return str(yaml.safe_dump_all(users, sort_keys=False, explicit_start=True))


def _acl(grant: Grant) -> dict[str, Any]:
    return {
        "resource": {"type": grant.kind, "name": grant.name, "patternType": "literal"},
        "operations": list(grant.operations),
    }
