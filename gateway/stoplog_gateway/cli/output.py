"""The output of the commands: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, NoReturn

import typer
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from rich.console import Console

from stoplog.errors import SettingsError, StoplogError
from stoplog_gateway.cli.formatting import printable
from stoplog_gateway.settings import GatewaySettings

REFUSED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
CONFIG: Final = 78
"""A restart would end the same way (EX_CONFIG of sysexits)."""


class _Messages(Console):
    """A console for messages. `stoplog up` goes on when nobody reads them any more (`2>&1 | head`)."""

    def on_broken_pipe(self) -> None:
        """Print nothing more, where Rich would end the process."""
        self.quiet = True


# Ids are untrusted, so markup is off, and formatting.printable makes them safe to show.
# Styled output is rich.text.Text.
out: Final = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
err: Final = _Messages(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON value and nothing else on standard output.")
]


def examples(*lines: str) -> str:
    """Return the epilog of a help text that shows *lines*. Rich keeps only doubled line breaks."""
    return "\n\n".join(("Examples:", *(f"$ {line}" for line in lines)))


def print_json(value: Any) -> None:
    """Print *value* on one line, without buffering, so that a program that reads a pipe sees it at once."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def fail(message: str, status: int) -> NoReturn:
    """Print *message* and end with *status*."""
    # The message may quote untrusted text. The end of a log has line breaks and tabs.
    shown = "\n".join(map(printable, message.expandtabs().split("\n")))
    err.print(f"stoplog: {shown}", style="red")
    raise typer.Exit(status)


@contextmanager
def reporting() -> Iterator[None]:
    """Turn each error that an operator can cause or repair into one message and an exit status."""
    try:
        yield
    except SettingsError as exc:
        fail(str(exc), USAGE)
    except StoplogError as exc:
        fail(str(exc), REFUSED)
    except ValidationError as exc:
        problems = "; ".join(
            f"STOPLOG_{str(e['loc'][0]).upper()}{_input(e)}: {e['msg']}" for e in exc.errors()
        )
        fail(problems, USAGE)


def _input(error: ErrorDetails) -> str:
    field = GatewaySettings.model_fields.get(str(error["loc"][0]))
    secret = field is None or "SecretStr" in str(field.annotation)
    return "" if secret else f"={error['input']!r}"
