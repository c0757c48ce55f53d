"""``stoplog up``, ``broker``, ``topics``, ``worker`` and ``gateway``: all parts together, or one by one."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from confluent_kafka.admin import AdminClient

from stoplog.errors import SettingsError, TopicError
from stoplog.kafka.topic_admin import create_topics, verify_topics
from stoplog.topics import MAX_LANES, TopicSpec, lane_names, lane_of, load_topics, with_lanes, worker_name
from stoplog_gateway.cli.output import (
    CONFIG,
    REFUSED,
    USAGE,
    AsJson,
    err,
    examples,
    fail,
    out,
    print_json,
    reporting,
)
from stoplog_gateway.local.kafka_broker import Broker, reachable
from stoplog_gateway.local.up import Up
from stoplog_gateway.ports import CannotListen, ensure_free, free_port, url_of
from stoplog_gateway.settings import GatewaySettings

topics = typer.Typer(
    name="topics",
    help="Make or compare the topics of topics.yaml.",
    no_args_is_help=True,
    epilog=examples("stoplog topics create", "STOPLOG_KAFKA=kafka:9092 stoplog topics verify"),
)

Lanes = Annotated[
    int, typer.Option(min=1, max=MAX_LANES, help="Sets of workers that all judge every check: a, b, ...")
]
NamedLanes = Annotated[
    list[str] | None, typer.Option("--lane", help="A further lane by its name; may be given again.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
    app.command(
        epilog=examples(
            "stoplog up",
            "stoplog up --workers 2 --gateways 2 --lanes 2",
            "STOPLOG_KAFKA=kafka:9092 stoplog up",
        )
    )(up)
    app.command(epilog=examples("stoplog broker", "STOPLOG_BROKER_PORT=19092 stoplog broker"))(broker)
    app.add_typer(topics)
    app.command(
        epilog=examples(
            "STOPLOG_INSTANCE_ID=worker-2 STOPLOG_METRICS_PORT=9102 stoplog worker", "stoplog worker --lane b"
        )
    )(worker)
    app.command(
        epilog=examples(
            "STOPLOG_PORT=8081 stoplog gateway",
            "stoplog gateway --processes 4",
            "stoplog gateway --envoy 127.0.0.1:8081",
        )
    )(gateway)


def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Workers to start, in each lane.")] = 1,
    gateways: Annotated[
        int, typer.Option(min=1, max=64, help="Gateways to start, on STOPLOG_PORT and the ports after it.")
    ] = 1,
    lanes: Lanes = 1,
    as_json: AsJson = False,
) -> None:
    """Start everything here: broker, topics, workers, gateways. Ctrl-C stops it; counts and limits stay."""
    with reporting():
        settings = GatewaySettings()

        def ready(urls: list[str]) -> None:
            if as_json:
                print_json({"ready": True, "url": urls[0], "gateways": urls, "kafka": settings.bootstrap})
            else:
                _invite(urls)

        Up(settings, workers=workers, gateways=gateways, lanes=lanes, say=err.print, ready=ready).run()


def _invite(urls: list[str]) -> None:
    """Say that all is ready, and what to try."""
    send = "-H 'Content-Type: application/json' -d"
    print(f"stoplog is ready: {urls[0]}")
    print(f"""  curl -X PUT {urls[0]}/v1/limits/alice {send} '{{"limits": ["5/minute"]}}'""")
    print(f"""  curl {urls[0]}/v1/check {send} '{{"client_id": "alice"}}'""", flush=True)
    if len(urls) > 1:
        print(f"more gateways: {' '.join(urls[1:])}", flush=True)


def broker(as_json: AsJson = False) -> None:
    """Run the embedded Kafka broker alone, until Ctrl-C."""
    with reporting():
        settings = GatewaySettings()
        node = Broker(settings.home, port=settings.broker_port)
        with stopped_by_signals():
            try:
                node.start()
                if as_json:
                    print_json({"bootstrap": node.bootstrap, "pid": node.pid})
                else:
                    out.print(f"Kafka is ready: {node.bootstrap}")
                node.wait()
                fail(f"the broker stopped by itself; the end of {node.log}:\n{node.tail()}", REFUSED)
            except KeyboardInterrupt:
                pass
            finally:
                node.stop()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal interrupt like Ctrl-C."""

    def interrupt(_: int, __: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    yield


@topics.command(epilog=examples("stoplog topics create", "stoplog topics create --lanes 2"))
def create(lanes: Lanes = 1, lane: NamedLanes = None, as_json: AsJson = False) -> None:
    """Create what is missing, and compare the rest with topics.yaml."""
    with reporting():
        settings = GatewaySettings()
        created = create_topics(_admin(settings), _specs(settings, lanes, lane).values())
    if as_json:
        print_json({"created": created})
    else:
        out.print(f"created: {', '.join(created)}" if created else "all topics are there")


@topics.command(epilog=examples("stoplog topics verify", "stoplog topics verify --lanes 2"))
def verify(lanes: Lanes = 1, lane: NamedLanes = None, as_json: AsJson = False) -> None:
    """Compare the broker's topics with topics.yaml; exit status 1 if they differ in what matters."""
    with reporting():
        settings = GatewaySettings()
        specs = _specs(settings, lanes, lane)
        verify_topics(_admin(settings), specs.values())
    if as_json:
        print_json({"verified": list(specs)})
    else:
        out.print(f"{len(specs)} topics are as {settings.topics} says")


def _specs(settings: GatewaySettings, count: int, named: list[str] | None) -> dict[str, TopicSpec]:
    return with_lanes(load_topics(settings.topics), [*lane_names(count), *map(lane_of, named or ())])


def _admin(settings: GatewaySettings) -> AdminClient:
    reachable(settings.bootstrap)
    return AdminClient({"bootstrap.servers": settings.bootstrap, "log_level": 0})


def worker(
    lane: Annotated[
        str | None, typer.Option(help="The lane to judge in, as STOPLOG_LANE; a is the default one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run one worker, until Ctrl-C; each needs a STOPLOG_INSTANCE_ID of its own."""
    with reporting():
        lane = lane_of(os.environ.get("STOPLOG_LANE", "") if lane is None else lane)
    os.environ["STOPLOG_LANE"] = lane
    if as_json:
        name = os.environ.get("STOPLOG_INSTANCE_ID") or worker_name(lane, 1)
        print_json({"worker": name, "pid": os.getpid()})
    # Another program in this process: the gateway's side imports nothing of the worker.
    os.execv(sys.executable, [sys.executable, "-m", "stoplog_worker", "worker"])


def gateway(
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Processes that share the port, as STOPLOG_PROCESSES; Linux."),
    ] = None,
    envoy: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Serve Envoy's rate limit service (gRPC) there too, as STOPLOG_ENVOY."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run one gateway, until Ctrl-C; exit status 78 if the topics are not those of topics.yaml."""
    # The other commands start faster without the web framework.
    from stoplog_gateway.server.prefork import serve_forked
    from stoplog_gateway.server.server import serve

    with reporting():
        given: dict[str, Any] = {"processes": processes, "envoy": envoy}
        settings = GatewaySettings(**{name: value for name, value in given.items() if value is not None})
    if not settings.port:
        settings = settings.model_copy(update={"port": free_port()})
    try:
        ensure_free(settings.port, settings.host)
    except CannotListen as exc:
        fail(str(exc), USAGE)
    forked = settings.processes > 1
    logging.basicConfig(
        level=settings.log_level.upper(),
        format=f"%(asctime)s %(levelname)s {'[%(process)d] ' if forked else ''}%(name)s: %(message)s",
    )
    if as_json:
        print_json({"url": url_of(settings.host, settings.port), "pid": os.getpid()})
    try:
        if forked:
            serve_forked(settings)
        elif (failure := serve(settings)) is not None:
            fail(failure, REFUSED)
    except TopicError as exc:
        fail(str(exc), CONFIG)
    except (CannotListen, SettingsError) as exc:
        fail(str(exc), USAGE)
