"""A running gateway's HTTP API, for the commands."""

from __future__ import annotations

import os
from typing import Annotated, Any, Final
from urllib.parse import quote

import httpx
import typer

from stoplog.errors import StoplogError
from stoplog_gateway.cli.output import REFUSED, UNREACHABLE, USAGE, fail

_TIMEOUT_S: Final = 30.0
"""Longer than a change waits to be confirmed; an ordinary answer takes a millisecond."""

_TYPING_S: Final = 1.0
"""Who presses Tab waits no longer."""

_OFFERED: Final = 1_000

_REMEDIES: Final = {
    "unauthorized": "set STOPLOG_ADMIN_TOKEN to the gateway's token",
    "forbidden": "run this on the gateway's machine with --url http://127.0.0.1:<port>, or set the same "
    "STOPLOG_ADMIN_TOKEN for the gateway and here",
    "no-limits": "set some with `stoplog limits set`; `stoplog limits list` shows who has any",
    "store-unavailable": "try again when `stoplog status` says that the store is ok",
}
"""What a person at a shell does about a problem whose own remedy is for programs, by its name."""

Url = Annotated[str, typer.Option("--url", envvar="STOPLOG_URL", help="The gateway to ask.")]
DEFAULT_URL: Final = "http://127.0.0.1:8080"


class Unanswered(StoplogError):
    """No gateway answers, or it refuses; the text says what to do, ``status`` how a command ends."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def call(url: str, method: str, path: str, *, body: Any = None, **query: str | None) -> Any:
    """Call the gateway at *url*; ends the command if it is not there or refuses.

    Args:
        url: As the user gave it.
        method: ``GET``, ``PUT`` …
        path: Escaped where it holds an id (:func:`segment`).
        body: Sent as JSON if given.
        **query: Parameters; those that are ``None`` are left out.

    Returns:
        The answer's JSON.
    """
    try:
        with connection() as client:
            return ask(client, url, method, path, body=body, **query)
    except Unanswered as exc:
        fail(str(exc), exc.status)


def connection(timeout_s: float = _TIMEOUT_S) -> httpx.Client:
    """A connection for :func:`ask`, kept alive; to be closed. Ends the command if the admin token is none."""
    token = os.environ.get("STOPLOG_ADMIN_TOKEN", "").strip()
    if not token.isascii() or not token.isprintable():
        fail(
            "STOPLOG_ADMIN_TOKEN is not printable ASCII, so it is no gateway's: set it to the gateway's",
            USAGE,
        )
    # No proxy and no .netrc of the environment: a gateway is called directly.
    return httpx.Client(
        timeout=timeout_s, trust_env=False, headers={"Authorization": f"Bearer {token}"} if token else {}
    )


def ask(
    client: httpx.Client, url: str, method: str, path: str, *, body: Any = None, **query: str | None
) -> Any:
    """Call the gateway at *url* by *client*; the rest is as for :func:`call`.

    Raises:
        Unanswered: it is not there or refuses.
    """
    try:
        response = client.request(
            method,
            url.rstrip("/") + path,
            json=body,
            params={name: value for name, value in query.items() if value is not None},
        )
    except (httpx.TransportError, httpx.InvalidURL) as exc:
        raise Unanswered(
            f"no gateway answers at {url} ({exc}): start one with `stoplog up`, or name yours with --url or "
            f"STOPLOG_URL",
            UNREACHABLE,
        ) from exc
    try:
        answer = response.json()
    except ValueError:
        raise Unanswered(
            f"{url} answered {response.status_code} and no JSON: is it a Stoplog gateway?", UNREACHABLE
        ) from None
    if response.is_error:
        raise Unanswered(_told(answer), REFUSED)
    return answer


def stored(url: str, kind: str) -> list[dict[str, Any]]:
    """The first limits stored for *kind*, for whoever types; none if the gateway does not say."""
    query: dict[str, str | int] = {"kind": kind, "limit": _OFFERED}
    try:
        with connection(_TYPING_S) as client:
            answer = client.get(f"{url.rstrip('/')}/v1/limits", params=query)
        items: list[dict[str, Any]] = answer.raise_for_status().json()["items"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, typer.Exit):
        return []
    return [item for item in items if item["limits"] is not None]


def segment(id_: str) -> str:
    """*id_* as one segment of a path.

    >>> segment("a/b"), segment("..")  # the latter would go up
    ('a%2Fb', '%2E%2E')
    """
    return "%2E" * len(id_) if id_ in (".", "..") else quote(id_, safe="")


def _told(problem: Any) -> str:
    """A problem+json document as a sentence."""
    if not isinstance(problem, dict):
        return str(problem)
    text = f"{problem.get('title', 'refused')}: {problem.get('detail', '')}"
    name = str(problem.get("type", "")).rpartition(":")[2]
    return f"{text}; {remedy}" if (remedy := _REMEDIES.get(name, problem.get("remedy"))) else text
