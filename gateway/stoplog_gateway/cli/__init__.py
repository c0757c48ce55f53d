"""The command ``stoplog``: runs the parts, and asks a running gateway.

Exit status: 0 done (a check: allowed), 1 denied or refused, 2 a usage or settings error, 3 no gateway there,
78 a gateway or worker whose topics or settings must be mended first.
"""

from __future__ import annotations

import typer

from stoplog_gateway.cli import bench, limits, verify, watch
from stoplog_gateway.cli import check as checks
from stoplog_gateway.cli import serve as processes

app = typer.Typer(
    name="stoplog",
    help="A distributed rate limiter whose store is the log.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
processes.register(app)
checks.register(app)
watch.register(app)
verify.register(app)
bench.register(app)
app.add_typer(limits.app)


def main() -> None:
    """Run the command line."""
    app(prog_name="stoplog")
