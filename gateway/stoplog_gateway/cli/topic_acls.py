"""``stoplog topics acls``: print the access rights that each role needs in Kafka."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from stoplog.errors import InvalidInput
from stoplog.kafka.acls import ROLES, grants
from stoplog.lanes import lane_names, lane_of, with_lanes
from stoplog.topics import load_topics
from stoplog_gateway.cli.acl_formats import kafka_acls_commands, strimzi_users
from stoplog_gateway.cli.output import AsJson, examples, out, print_json, reporting
from stoplog_gateway.cli.topics import Lanes, NamedLanes
from stoplog_gateway.settings import GatewaySettings


class Format(StrEnum):
    """Format of the output."""

    KAFKA_ACLS = "kafka-acls"
    STRIMZI = "strimzi"


class Authentication(StrEnum):
    """How Strimzi's users authenticate."""

    SCRAM = "scram-sha-512"
    TLS = "tls"
    TLS_EXTERNAL = "tls-external"


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command(
        epilog=examples(
            "stoplog topics acls --role worker --principal User:svc-stoplog",
            "stoplog topics acls --principal 'User:CN={role}.stoplog'",
            "stoplog topics acls --format strimzi --cluster my-cluster | kubectl apply -f -",
        )
    )(acls)


def acls(
    role: Annotated[
        list[str] | None,
        typer.Option(help=f"Role to print: {', '.join(ROLES)}. May be given several times. [default: all]"),
    ] = None,
    principal: Annotated[
        str, typer.Option(help="Principal of each role. {role} stands for the role's name.")
    ] = "User:stoplog-{role}",
    layout: Annotated[
        Format, typer.Option("--format", help="Commands of Kafka, or KafkaUser resources of Strimzi.")
    ] = Format.KAFKA_ACLS,
    cluster: Annotated[str, typer.Option(help="Name of Strimzi's Kafka resource.")] = "my-cluster",
    authentication: Annotated[
        Authentication, typer.Option(help="Authentication of Strimzi's users.")
    ] = Authentication.SCRAM,
    lanes: Lanes = 1,
    lane: NamedLanes = None,
    as_json: AsJson = False,
) -> None:
    """Print the access rights that each role needs on the topics of topics.yaml. Connects to nothing."""
    with reporting():
        settings = GatewaySettings()
        names = [*lane_names(lanes), *map(lane_of, lane or ())]
        topics = with_lanes(load_topics(settings.topics), names)
        roles = role or list(ROLES)
        for name in roles:
            if name not in ROLES:
                raise InvalidInput("role", f"{name!r} is not a role", f"use one of {', '.join(ROLES)}")
        rights = {principal.replace("{role}", name): grants(name, topics, names) for name in roles}
        if len(rights) < len(roles):
            raise InvalidInput("principal", "several roles would share it", "use {role} in it, or one --role")
    if as_json:
        print_json(
            {name: [grant._asdict() for grant in granted] for name, granted in rights.items()},
        )
    elif layout is Format.STRIMZI:
        out.print(strimzi_users(rights, cluster, authentication.value), end="")
    else:
        for command in kafka_acls_commands(settings.bootstrap, rights):
            out.print(command)
