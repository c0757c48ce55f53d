"""What the commands print: results to stdout, everything else to stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, NoReturn

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from rich.console import Console

from stoplog.errors import StoplogError
from stoplog_gateway.cli.formatting import printable

REFUSED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
CONFIG: Final = 78
"""Started again it would end the same way (sysexits' EX_CONFIG)."""

# What should be styled is rich.text.Text. Ids are anybody's: figures.printable makes them safe to show.
out: Final = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
err: Final = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON value, and nothing else, on standard output.")
]


def examples(*lines: str) -> str:
    """An epilog that shows *lines*; rich keeps only line breaks that are doubled."""
    return "\n\n".join(("Examples:", *(f"$ {line}" for line in lines)))


def print_json(value: Any) -> None:
    """One line, at once, so that a program reading a pipe sees it."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def fail(message: str, status: int) -> NoReturn:
    """Say what went wrong and end with *status*."""
    # It may quote others; the end of a log has lines and tabs.
    shown = "\n".join(map(printable, message.expandtabs().split("\n")))
    err.print(f"stoplog: {shown}", style="red")
    raise typer.Exit(status)


@contextmanager
def reporting() -> Iterator[None]:
    """Turn the errors that an operator can cause or mend into one message each."""
    try:
        yield
    except StoplogError as exc:
        fail(str(exc), REFUSED)
    except ValidationError as exc:
        problems = "; ".join(
            f"STOPLOG_{str(e['loc'][0]).upper()}{_input(e)}: {e['msg']}" for e in exc.errors()
        )
        fail(problems, USAGE)


def _input(error: ErrorDetails) -> str:
    secret = error["loc"][0] == "admin_token"
    return "" if secret else f"={error['input']!r}"
