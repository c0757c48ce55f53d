"""``stoplog tokens``: the tokens with which callers use a gateway."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from stoplog_gateway.access.local_token import TOKENS_FILE
from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.access.tokens_file import add_token, parse_scopes, read_tokens, revoke_token
from stoplog_gateway.cli.output import USAGE, AsJson, examples, fail, out, print_json, reporting
from stoplog_gateway.settings import GatewaySettings

app = typer.Typer(
    name="tokens",
    help="Add, list and revoke the tokens of callers. Gateways read the file again within 5 seconds.",
    no_args_is_help=True,
    epilog=examples("stoplog tokens add ops --scope admin", "stoplog tokens list"),
)

Name = Annotated[str, typer.Argument(help="Name of the caller, for logs and the audit.", show_default=False)]
File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        help="The tokens file (STOPLOG_TOKENS_FILE). By default, that of `stoplog up`.",
        show_default=False,
        metavar="FILE",
    ),
]


@app.command(
    epilog=examples(
        "stoplog tokens add ops --scope admin",
        "stoplog tokens add shop --scope check --scope read --file /etc/stoplog/tokens",
    )
)
def add(
    name: Name,
    scope: Annotated[
        list[str],
        typer.Option(
            "--scope",
            help="Scope of the token: check, read or admin, which includes the others. Can be repeated.",
            metavar="SCOPE",
        ),
    ],
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Add a token and print it, once: the file stores its SHA-256 only."""
    try:
        scopes = parse_scopes(",".join(scope).split(","))
    except ValueError as exc:
        fail(f"--scope: {exc}", USAGE)
    with reporting():
        path = _path(file)
        text = add_token(path, name, scopes)
    if as_json:
        print_json({"name": name, "scopes": _listed(scopes), "token": text, "file": str(path)})
    else:
        print(text)


@app.command("list", epilog=examples("stoplog tokens list", "stoplog tokens list --json | jq '.[].name'"))
def list_(file: File = None, as_json: AsJson = False) -> None:
    """List the tokens, without their texts."""
    with reporting():
        tokens = read_tokens(_path(file))
    if as_json:
        rows = [{"name": t.name, "scopes": _listed(t.scopes), "created": t.created or None} for t in tokens]
        print_json(rows)
        return
    table = Table("name", "scopes", "created")
    for token in tokens:
        table.add_row(*map(Text, (token.name, ",".join(_listed(token.scopes)), token.created or "-")))
    out.print(table)


@app.command(epilog=examples("stoplog tokens revoke shop"))
def revoke(name: Name, file: File = None, as_json: AsJson = False) -> None:
    """Revoke a token. Gateways refuse it within 5 seconds."""
    with reporting():
        revoke_token(path := _path(file), name)
    if as_json:
        print_json({"name": name, "file": str(path)})
    else:
        out.print(f"{name}: revoked in {path}")


def _listed(scopes: frozenset[Scope]) -> list[Scope]:
    return [scope for scope in Scope if scope in scopes]


def _path(file: Path | None) -> Path:
    """Return the tokens file that is meant.

    Raises:
        ValidationError: A setting is invalid.
    """
    settings = GatewaySettings()
    return file or settings.tokens_file or settings.home / TOKENS_FILE
