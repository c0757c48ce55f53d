from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from stoplog_gateway.cli.app import app
from typer.testing import CliRunner, Result

from stoplog.kafka.acls import ROLES


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["topics", "acls", *arguments], env={"STOPLOG_KAFKA": "kafka:9092"})


def test_commands_name_the_servers_the_principal_and_the_operations() -> None:
    lines = run("--role", "publisher", "--principal", "User:svc").output.splitlines()
    start = "kafka-acls.sh --bootstrap-server kafka:9092 --command-config admin.properties --add"
    assert lines == [
        f"{start} --allow-principal User:svc --operation Write --topic checks",
        f"{start} --allow-principal User:svc --operation Read --topic replies",
    ]


def test_every_role_has_a_principal_of_its_own_by_default() -> None:
    output = run().output
    assert all(f"--allow-principal User:stoplog-{role} " in output for role in ROLES)


def test_strimzi_users_have_the_version_and_the_shape_that_the_operator_reads() -> None:
    done = run("--format", "strimzi", "--cluster", "prod", "--authentication", "tls")
    users: list[Any] = list(yaml.safe_load_all(done.output))
    assert [user["metadata"]["name"] for user in users] == [f"stoplog-{role}" for role in ROLES]
    publisher = users[list(ROLES).index("publisher")]
    assert publisher == {
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": "KafkaUser",
        "metadata": {"name": "stoplog-publisher", "labels": {"strimzi.io/cluster": "prod"}},
        "spec": {
            "authentication": {"type": "tls"},
            "authorization": {
                "type": "simple",
                "acls": [
                    {
                        "resource": {"type": "topic", "name": "checks", "patternType": "literal"},
                        "operations": ["Write"],
                    },
                    {
                        "resource": {"type": "topic", "name": "replies", "patternType": "literal"},
                        "operations": ["Read"],
                    },
                ],
            },
        },
    }


def test_json_has_the_grants_by_principal() -> None:
    found = json.loads(run("--role", "publisher", "--json").output)
    assert found["User:stoplog-publisher"][0] == {"kind": "topic", "name": "checks", "operations": ["Write"]}


def test_lanes_have_changelogs_and_groups_of_their_own() -> None:
    output = run("--role", "worker", "--lanes", "2").output
    assert "--topic stoplog-b-counters-changelog" in output
    assert "--group stoplog-b --group stoplog-b-owner" in output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--role", "boss"], "'boss' is not a role"),
        (["--principal", "User:all"], "several roles would share it"),
    ],
)
def test_unusable_option_is_explained(arguments: list[str], text: str) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert text in done.output
