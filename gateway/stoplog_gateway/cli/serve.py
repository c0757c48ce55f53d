"""``stoplog worker`` and ``stoplog gateway``: one process of one kind."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from stoplog.errors import SettingsError, TopicError
from stoplog.lanes import lane_of, worker_name
from stoplog_gateway.cli.extras import require
from stoplog_gateway.cli.output import CONFIG, REFUSED, USAGE, AsJson, examples, fail, print_json, reporting
from stoplog_gateway.ports import CannotListen, claim_port, ensure_free, free_port, url_of
from stoplog_gateway.settings import GatewaySettings


def register(app: typer.Typer) -> None:
    """Add the commands to *app*."""
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


def worker(
    lane: Annotated[
        str | None, typer.Option(help="Lane of this worker (STOPLOG_LANE). The default lane is a.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run one worker until Ctrl-C. Each worker needs its own STOPLOG_INSTANCE_ID."""
    require("worker")
    with reporting():
        lane = lane_of(os.environ.get("STOPLOG_LANE", "") if lane is None else lane)
    os.environ["STOPLOG_LANE"] = lane
    if as_json:
        name = os.environ.get("STOPLOG_INSTANCE_ID") or worker_name(lane, 1)
        print_json({"worker": name, "pid": os.getpid()})
    # Replace this process by another program: the gateway's package imports nothing of the worker's.
    os.execv(sys.executable, [sys.executable, "-m", "stoplog_worker", "worker"])


def gateway(
    processes: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Number of processes that share the port (STOPLOG_PROCESSES). Linux only."
        ),
    ] = None,
    envoy: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Address on which to serve Envoy's rate limit service by gRPC as well (STOPLOG_ENVOY).",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run one gateway until Ctrl-C. Exit status 78: the topics differ from topics.yaml."""
    require("gateway")
    with reporting():
        given: dict[str, Any] = {"processes": processes, "envoy": envoy}
        settings = GatewaySettings(**{name: value for name, value in given.items() if value is not None})
    if not settings.port:
        settings = settings.model_copy(update={"port": free_port()})
    with ExitStack() as claims:
        try:
            # Before the port is bound, which takes as long as the connection to Kafka: of two gateways that
            # start at the same moment, one gets the port, and the other ends now.
            if sys.platform == "linux":
                for sock in claim_port(settings.port, settings.host, "gateway"):
                    claims.enter_context(sock)
            ensure_free(settings.port, settings.host)
        except CannotListen as exc:
            fail(str(exc), USAGE)
        _serve(settings, as_json=as_json)


def _serve(settings: GatewaySettings, *, as_json: bool) -> None:
    """Run the gateway until it is stopped."""
    # Imported here, because the other commands start faster without the web framework.
    from stoplog_gateway.server.prefork import serve_forked
    from stoplog_gateway.server.server import serve

    forked = settings.processes > 1
    logging.basicConfig(
        level=settings.log_level.upper(),
        format=f"%(asctime)s %(levelname)s {'[%(process)d] ' if forked else ''}%(name)s: %(message)s",
    )
    if as_json:
        print_json(
            {
                "url": url_of(settings.host, settings.port, settings.url_scheme),
                "pid": os.getpid(),
            }
        )
    try:
        if forked:
            serve_forked(settings)
        elif (failure := serve(settings)) is not None:
            fail(failure, REFUSED)
    except TopicError as exc:
        fail(str(exc), CONFIG)
    except (CannotListen, SettingsError) as exc:
        fail(str(exc), USAGE)
