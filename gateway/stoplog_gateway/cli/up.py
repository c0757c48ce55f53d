"""``stoplog up`` and ``stoplog broker``: everything on this machine, or only the embedded broker."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from stoplog.private_files import write_private_files
from stoplog_gateway.cli.extras import require
from stoplog_gateway.cli.first_requests import first_requests
from stoplog_gateway.cli.output import REFUSED, AsJson, examples, fail, out, print_json, reporting
from stoplog_gateway.cli.progress import Progress, showing_progress
from stoplog_gateway.cli.topics import Lanes
from stoplog_gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from stoplog_gateway.local.kafka_broker import Broker


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


def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Number of workers in each lane.")] = 1,
    gateways: Annotated[
        int,
        typer.Option(min=1, max=64, help="Number of gateways, on STOPLOG_PORT and the ports after it."),
    ] = 1,
    lanes: Lanes = 1,
    as_json: AsJson = False,
) -> None:
    """Start everything here: broker, topics, workers, gateways. Ctrl-C stops it; counts and limits stay."""
    require("local")
    from stoplog_gateway.local.up import Up

    with reporting():
        settings = GatewaySettings()
        with showing_progress() as progress:

            def ready(urls: list[str]) -> None:
                progress.clear()
                if as_json:
                    print_json({"ready": True, "url": urls[0], "gateways": urls, "kafka": settings.bootstrap})
                else:
                    print(*first_requests(urls, settings), sep="\n", flush=True)

            broker = None if settings.kafka else _broker(settings, progress)
            Up(
                settings,
                broker=broker,
                workers=workers,
                gateways=gateways,
                lanes=lanes,
                progress=progress,
                ready=ready,
            ).run()


def broker(as_json: AsJson = False) -> None:
    """Run the embedded Kafka broker alone, until Ctrl-C."""
    require("local")
    write_private_files()
    with reporting():
        settings = GatewaySettings()
        with showing_progress() as progress, stopped_by_signals():
            node = _broker(settings, progress)
            try:
                node.start()
                progress.clear()
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


def _broker(settings: GatewaySettings, progress: Progress) -> Broker:
    """Return the embedded broker, which shows on *progress* how far the download of Kafka is."""
    from stoplog_gateway.local.kafka_broker import Broker
    from stoplog_gateway.local.kafka_jars import KAFKA_VERSION, Download, fetch_jars

    def show(download: Download) -> None:
        progress.show(f"fetching Apache Kafka {KAFKA_VERSION}: {download}", download.share)

    fetch = partial(fetch_jars, mirror=settings.maven_mirror, on_progress=show)
    return Broker(settings.home, port=settings.broker_port, fetch=fetch, ends_with_parent=True)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and a closed terminal (SIGHUP) raise KeyboardInterrupt, as Ctrl-C does."""

    def interrupt(_: int, __: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    yield
