"""``stoplog topics``: create the topics of topics.yaml, or compare them with the broker's."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Annotated, NamedTuple

import typer

from stoplog.kafka.clients import ExplainingAdmin, silent_admin
from stoplog.kafka.partition_count import PartitionCountReader, explain_difference, write_partition_count
from stoplog.kafka.topic_admin import create_topics, verify_topics
from stoplog.lanes import MAX_LANES, lane_names, lane_of, with_lanes
from stoplog.topics import CHECKS, UPDATES, TopicSpec, load_topics, required_partitions, with_partitions
from stoplog.wire.partition_count import PartitionCount
from stoplog_gateway.cli.extras import require
from stoplog_gateway.cli.output import AsJson, err, examples, out, print_json, reporting
from stoplog_gateway.kafka_reachable import ensure_reachable
from stoplog_gateway.settings import GatewaySettings

app = typer.Typer(
    name="topics",
    help="Create or verify the topics of topics.yaml, or print the access rights to them.",
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
        admin = _admin(settings)
        topics = _topics(settings, lanes, lane)
        created = create_topics(admin, topics.specs.values(), recorded=topics.recorded)
        found = verify_topics(admin, topics.specs.values(), recorded=topics.recorded)
        if not topics.recorded:
            _record(settings, topics, found)
    difference = topics.difference(found)
    if as_json:
        print_json({"created": created, "partitions": topics.partitions, "difference": difference})
    else:
        out.print(f"created: {', '.join(created)}" if created else "all topics exist")
        if difference is not None:
            out.print(difference)


@app.command(epilog=examples("stoplog topics verify", "stoplog topics verify --lanes 2"))
def verify(lanes: Lanes = 1, lane: NamedLanes = None, as_json: AsJson = False) -> None:
    """Compare the broker's topics with topics.yaml. Exit status 1: they cannot be used."""
    with reporting():
        settings = GatewaySettings()
        admin = _admin(settings)
        topics = _topics(settings, lanes, lane)
        found = verify_topics(admin, topics.specs.values(), recorded=topics.recorded)
    difference = topics.difference(found)
    if difference is None:
        agreement = f"they agree with {settings.topics}"
        if topics.partitions != topics.partitions_in_file:
            agreement += f": its {topics.partitions_in_file} partitions have grown to {topics.partitions}"
    if as_json:
        print_json(
            {"verified": list(topics.specs), "partitions": topics.partitions, "difference": difference}
        )
    else:
        out.print(f"{len(topics.specs)} topics can be used: {topics.partitions} partitions of checks")
        out.print(difference if difference is not None else agreement)


@app.command(epilog=examples("stoplog topics grow 8", "stoplog topics grow 8 --dry-run"))
def grow(
    number: Annotated[
        int | None, typer.Argument(help="Number of partitions: a multiple of the current one.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, and for how long. Change nothing.")
    ] = False,
    abort: Annotated[
        bool,
        typer.Option("--abort", help="End an interrupted attempt: continue with the number before it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Split the partitions into NUMBER. Gateways and workers may run: they pause for some seconds.

    During the pause, checks are answered without the store, and not counted.

    Exit status: 0 done, 1 not possible now, 2 NUMBER is no multiple of the current number, or a setting is
    invalid, 130 interrupted.
    """
    if (number is None) != abort or (abort and dry_run):
        raise typer.BadParameter("give NUMBER, or --abort alone", param_hint="NUMBER")
    require("worker")
    options = [
        *([] if number is None else [str(number)]),
        *(["--abort"] if abort else []),
        *(["--dry-run"] if dry_run else []),
        *(["--json"] if as_json else []),
    ]
    # Replace this process by another program: the gateway's package imports nothing of the worker's.
    os.execv(sys.executable, [sys.executable, "-m", "stoplog_worker", "grow", *options])


class _Topics(NamedTuple):
    """The topics that a system needs.

    Attributes:
        specs: The topics, with the number of partitions in force.
        recorded: Whether that number is recorded in ``limit-updates``. Otherwise it is that of topics.yaml.
        number: That number.
        partitions_in_file: The number of partitions that topics.yaml requires.
    """

    specs: dict[str, TopicSpec]
    recorded: bool
    number: PartitionCount
    partitions_in_file: int

    @property
    def partitions(self) -> int:
        """The number of partitions over which clients are hashed."""
        return self.number.partitions

    def difference(self, found: Mapping[str, int]) -> str | None:
        """Return how the topics that were *found* differ from the number in force."""
        copartitioned = {name: found[name] for name, spec in self.specs.items() if spec.copartitioned}
        return explain_difference(self.number, copartitioned, self.partitions_in_file)


def _topics(settings: GatewaySettings, count: int, named: list[str] | None) -> _Topics:
    in_file = load_topics(settings.topics)
    recorded = PartitionCountReader(settings.connection).read()
    number = in_file[CHECKS].partitions
    number_in_force = recorded or PartitionCount(number)
    specs = with_partitions(in_file, number_in_force.partitions)
    every = with_lanes(specs, [*lane_names(count), *map(lane_of, named or ())])
    required = required_partitions(settings.topics, in_file) or number_in_force.first
    return _Topics(every, recorded is not None, number_in_force, required)


def _record(settings: GatewaySettings, topics: _Topics, found: Mapping[str, int]) -> None:
    """Record the number of partitions, unless a topic has another one: a worker then decides."""
    if all(found[name] == spec.partitions for name, spec in topics.specs.items() if spec.copartitioned):
        try:
            write_partition_count(settings.connection, topics.number)
        except PermissionError as exc:
            err.print(
                f"the number of partitions ({topics.partitions}) is not recorded ({exc}): run this command "
                f"with the credentials of an administrator, or start a worker that may write to {UPDATES}"
            )


def _admin(settings: GatewaySettings) -> ExplainingAdmin:
    ensure_reachable(settings.connection)
    return silent_admin(settings.connection)
