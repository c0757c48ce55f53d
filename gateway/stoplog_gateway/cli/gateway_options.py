"""Options of all commands that call a gateway: how they find their token, and whom they trust."""

from __future__ import annotations

import inspect
import os
import ssl
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, ParamSpec, TypeVar
from urllib.parse import urlsplit

import typer

from stoplog.errors import SettingsError
from stoplog.secret_file import read_secret
from stoplog_gateway.access.local_callers import is_loopback
from stoplog_gateway.access.local_token import TOKEN_FILE
from stoplog_gateway.cli.output import USAGE, fail

TOKEN_VARIABLE: Final = "STOPLOG_TOKEN"
TOKEN_FILE_VARIABLE: Final = "STOPLOG_TOKEN_FILE"
CA_FILE_VARIABLE: Final = "STOPLOG_CA_FILE"
CERT_FILE_VARIABLE: Final = "STOPLOG_CLIENT_CERT_FILE"
KEY_FILE_VARIABLE: Final = "STOPLOG_CLIENT_KEY_FILE"

_P = ParamSpec("_P")
_R = TypeVar("_R")

_TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        envvar=TOKEN_FILE_VARIABLE,
        help=f"File with the token to send. {TOKEN_VARIABLE} can hold the token itself. By default, the "
        "token of `stoplog up`.",
        show_default=False,
        metavar="FILE",
    ),
]


_CaFile = Annotated[
    Path | None,
    typer.Option(
        "--cacert",
        envvar=CA_FILE_VARIABLE,
        help="File with the CA certificates that the gateway's certificate is checked with.",
        show_default=False,
        metavar="FILE",
    ),
]
_CertFile = Annotated[
    Path | None,
    typer.Option(
        "--cert",
        envvar=CERT_FILE_VARIABLE,
        help="File with a client certificate, for a gateway that requires one.",
        show_default=False,
        metavar="FILE",
    ),
]
_KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        envvar=KEY_FILE_VARIABLE,
        help="File with the key of the client certificate.",
        show_default=False,
        metavar="FILE",
    ),
]


@dataclass(frozen=True)
class GatewayOptions:
    """Options of the command line for calls of a gateway.

    Attributes:
        token_file: File with the token.
        ca_file: CA certificates to check the gateway's with; ``None`` for those of the system.
        cert_file: Client certificate.
        key_file: Key of the client certificate, if it is in a file of its own.
    """

    token_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


_OPTIONS: Final = {
    "token_file": _TokenFile,
    "ca_file": _CaFile,
    "cert_file": _CertFile,
    "key_file": _KeyFile,
}
_VARIABLES: Final = (TOKEN_FILE_VARIABLE, CA_FILE_VARIABLE, CERT_FILE_VARIABLE, KEY_FILE_VARIABLE)
_current: ContextVar[GatewayOptions | None] = ContextVar("gateway options", default=None)


def calls_gateway(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Give *command* the options of :class:`GatewayOptions`, in force while it runs."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> _R:
        reset = _current.set(GatewayOptions(**{name: kwargs.pop(name) for name in _OPTIONS}))
        try:
            return command(*args, **kwargs)
        finally:
            _current.reset(reset)

    # Typer reads the options of a command from its signature.
    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in run.__signature__.parameters.values()}  # type: ignore[attr-defined]
    return run


def gateway_options() -> GatewayOptions:
    """Return the options of the command that runs; without one (for completion), those of the environment."""
    current = _current.get()
    if current is not None:
        return current
    given = [os.environ.get(variable) for variable in _VARIABLES]
    return GatewayOptions(*(Path(file) if file else None for file in given))


def tls_context() -> ssl.SSLContext:
    """Return TLS for calls of a gateway; end the command if a file is unusable."""
    options = gateway_options()
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
    except OSError as exc:  # ssl.SSLError is one, too
        fail(f"{options.ca_file} contains no CA certificates in PEM ({exc}): see {CA_FILE_VARIABLE}", USAGE)
    if options.cert_file is not None:
        try:
            context.load_cert_chain(options.cert_file, options.key_file)
        except OSError as exc:
            fail(
                f"{options.cert_file} is no certificate with its key in PEM ({exc}): see "
                f"{CERT_FILE_VARIABLE} and {KEY_FILE_VARIABLE}",
                USAGE,
            )
    return context


def find_token(url: str) -> str | None:
    """Return the token for calls of the gateway at *url*; end the command if the token is unusable.

    The token of `stoplog up` is sent to gateways on this machine only.
    """
    options = gateway_options()
    if (text := os.environ.get(TOKEN_VARIABLE, "").strip()) and options.token_file is None:
        return _checked(text, TOKEN_VARIABLE)
    path = options.token_file
    if path is None:
        path = Path(os.environ.get("STOPLOG_HOME") or ".stoplog", TOKEN_FILE)
        if not _is_local(url) or not os.access(path, os.R_OK):
            return None
    try:
        return _checked(read_secret(path, TOKEN_FILE_VARIABLE).strip(), str(path))
    except SettingsError as exc:
        fail(str(exc), USAGE)


def _is_local(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


def _checked(text: str, source: str) -> str:
    if not text.isascii() or not text.isprintable() or not text:
        fail(f"{source} contains no token, which is printable ASCII: see `stoplog tokens add`", USAGE)
    return text
