"""The commands of ``stoplog``, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from stoplog import __version__
from stoplog_gateway.cli import (
    bench,
    check,
    limits,
    serve,
    tokens,
    topic_acls,
    topics,
    up,
    usage,
    verify,
    watch,
)

app = typer.Typer(
    name="stoplog",
    help="A distributed rate limiter whose store is a Kafka log.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"stoplog {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Accept the options that come before a command."""


up.register(app)
topic_acls.register(topics.app)
app.add_typer(topics.app)
serve.register(app)
check.register(app)
usage.register(app)
watch.register(app)
verify.register(app)
bench.register(app)
app.add_typer(limits.app)
app.add_typer(tokens.app)
