"""A running gateway's HTTP API, for the commands."""

from __future__ import annotations

import os
from typing import Annotated, Any, Final
from urllib.parse import quote

import httpx
import typer

from gateway.cli.output import REFUSED, UNREACHABLE, fail

_TIMEOUT_S: Final = 30.0
"""Longer than a change waits to be confirmed; an ordinary answer takes a millisecond."""

Url = Annotated[str, typer.Option("--url", envvar="SLUICE_URL", help="The gateway to ask.")]
DEFAULT_URL: Final = "http://127.0.0.1:8080"


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
    token = os.environ.get("SLUICE_ADMIN_TOKEN")
    try:
        # No proxy and no .netrc of the environment: a gateway is called directly.
        with httpx.Client(timeout=_TIMEOUT_S, trust_env=False) as client:
            response = client.request(
                method,
                url.rstrip("/") + path,
                json=body,
                params={name: value for name, value in query.items() if value is not None},
                headers={"Authorization": f"Bearer {token}"} if token else {},
            )
    except (httpx.TransportError, httpx.InvalidURL) as exc:
        fail(
            f"no gateway answers at {url} ({exc}): start one with `sluice up`, or name yours with --url or "
            f"SLUICE_URL",
            UNREACHABLE,
        )
    try:
        answer = response.json()
    except ValueError:
        fail(f"{url} answered {response.status_code} and no JSON: is it a Sluice gateway?", UNREACHABLE)
    if response.is_error:
        fail(_told(answer), REFUSED)
    return answer


def segment(id_: str) -> str:
    """*id_* as one segment of a path."""
    return quote(id_, safe="")


def _told(problem: Any) -> str:
    """A problem+json document as a sentence."""
    if not isinstance(problem, dict):
        return str(problem)
    text = f"{problem.get('title', 'refused')}: {problem.get('detail', '')}"
    return f"{text}; {remedy}" if (remedy := problem.get("remedy")) else text
