"""``stoplog topics``: create the topics of topics.yaml, or compare them with the broker's."""

from __future__ import annotations

from typing import Annotated

import typer
from confluent_kafka.admin import AdminClient

from stoplog.kafka.clients import silent_admin
from stoplog.kafka.topic_admin import create_topics, verify_topics
from stoplog.lanes import MAX_LANES, lane_names, lane_of, with_lanes
from stoplog.topics import TopicSpec, load_topics
from stoplog_gateway.cli.output import AsJson, examples, out, print_json, reporting
from stoplog_gateway.kafka_reachable import ensure_reachable
from stoplog_gateway.settings import GatewaySettings

app = typer.Typer(
    name="topics",
    help="Create or verify the topics of topics.yaml.",
    no_args_is_help=True,
    epilog=examples("stoplog topics create", "STOPLOG_KAFKA=kafka:9092 stoplog topics verify"),
)

Lanes = Annotated[
    int,
    typer.Option(
        min=1, max=MAX_LANES, help="Number of lanes: sets of workers that each process every check."
    ),
]
NamedLanes = Annotated[
    list[str] | None, typer.Option("--lane", help="Name of one more lane. May be given several times.")
]


@app.command(epilog=examples("stoplog topics create", "stoplog topics create --lanes 2"))
def create(lanes: Lanes = 1, lane: NamedLanes = None, as_json: AsJson = False) -> None:
    """Create the missing topics, and compare the others with topics.yaml."""
    with reporting():
        settings = GatewaySettings()
        created = create_topics(_admin(settings), _specs(settings, lanes, lane).values())
    if as_json:
        print_json({"created": created})
    else:
        out.print(f"created: {', '.join(created)}" if created else "all topics exist")


@app.command(epilog=examples("stoplog topics verify", "stoplog topics verify --lanes 2"))
def verify(lanes: Lanes = 1, lane: NamedLanes = None, as_json: AsJson = False) -> None:
    """Compare the broker's topics with topics.yaml. Exit status 1: they differ."""
    with reporting():
        settings = GatewaySettings()
        specs = _specs(settings, lanes, lane)
        verify_topics(_admin(settings), specs.values())
    if as_json:
        print_json({"verified": list(specs)})
    else:
        out.print(f"{len(specs)} topics agree with {settings.topics}")


def _specs(settings: GatewaySettings, count: int, named: list[str] | None) -> dict[str, TopicSpec]:
    return with_lanes(load_topics(settings.topics), [*lane_names(count), *map(lane_of, named or ())])


def _admin(settings: GatewaySettings) -> AdminClient:
    ensure_reachable(settings.bootstrap)
    return silent_admin(settings.bootstrap)
