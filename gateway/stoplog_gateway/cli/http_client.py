"""A client of the gateway's HTTP API, for the commands."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import quote

import httpx
import typer

from stoplog.errors import StoplogError
from stoplog_gateway.cli.gateway_options import find_token, tls_context
from stoplog_gateway.cli.output import REFUSED, UNREACHABLE, fail

_TIMEOUT_S: Final = 30.0
"""Longer than a limit change waits for its confirmation. An ordinary answer takes a millisecond."""

_COMPLETION_TIMEOUT_S: Final = 1.0
"""The longest time that a press of Tab may take."""

_COMPLETIONS: Final = 1_000

_REMEDIES: Final = {
    "unauthorized": "name a file with a token of this gateway by --token-file or STOPLOG_TOKEN_FILE, or run "
    "this where `stoplog up` was started; `stoplog tokens add` makes tokens",
    "forbidden": "use a token with the scope (--token-file), or run this on the gateway's machine with --url "
    "http://127.0.0.1:<port>",
    "no-limits": "set some with `stoplog limits set`; `stoplog limits list` shows all that are stored",
    "store-unavailable": "try again when `stoplog status` shows that the store is ok",
}
"""Remedies for a person at a shell, by the problem's name; the remedies of the HTTP API are for programs."""

Url = Annotated[str, typer.Option("--url", envvar="STOPLOG_URL", help="URL of the gateway.")]
DEFAULT_URL: Final = "http://127.0.0.1:8080"


class CallFailed(StoplogError):
    """No gateway answers, or it refuses the call.

    Attributes:
        status: The exit status of the command.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def call(url: str, method: str, path: str, *, body: Any = None, **query: str | None) -> Any:
    """Call the gateway at *url* and return its answer; end the command if the call fails.

    Args:
        url: URL from the command line.
        method: HTTP method.
        path: Path, with ids escaped by :func:`segment`.
        body: Sent as JSON, unless it is ``None``.
        **query: Query parameters; those with the value ``None`` are left out.

    Returns:
        The decoded JSON body.
    """
    try:
        with connection(url) as client:
            return request(client, url, method, path, body=body, **query)
    except CallFailed as exc:
        fail(str(exc), exc.status)


def connection(url: str, timeout_s: float = _TIMEOUT_S) -> httpx.Client:
    """Return a client for :func:`request`, to be closed; end the command if its token is unusable."""
    token = find_token(url)
    # A gateway is called directly, so proxies and .netrc are ignored.
    return httpx.Client(
        timeout=timeout_s,
        trust_env=False,
        headers={"Authorization": f"Bearer {token}"} if token else {},
        verify=tls_context() if url.lower().startswith("https:") else True,
    )


def request(
    client: httpx.Client, url: str, method: str, path: str, *, body: Any = None, **query: str | None
) -> Any:
    """Call the gateway at *url* through *client*; the other arguments are those of :func:`call`.

    Raises:
        CallFailed: no gateway answers, or it refuses.
    """
    try:
        response = client.request(
            method,
            url.rstrip("/") + path,
            json=body,
            params={name: value for name, value in query.items() if value is not None},
        )
    except (httpx.TransportError, httpx.InvalidURL) as exc:
        raise CallFailed(
            f"no gateway answers at {url} ({exc}): start one with `stoplog up`, or name yours with --url or "
            f"STOPLOG_URL",
            UNREACHABLE,
        ) from exc
    try:
        answer = response.json()
    except ValueError:
        raise CallFailed(
            f"{url} answered {response.status_code} without JSON: is it a Stoplog gateway?", UNREACHABLE
        ) from None
    if response.is_error:
        raise CallFailed(_sentence(answer), REFUSED)
    return answer


def stored(url: str, kind: str) -> list[dict[str, Any]]:
    """Return the first limits stored for *kind*, for completion; none if the gateway does not answer."""
    query: dict[str, str | int] = {"kind": kind, "limit": _COMPLETIONS}
    try:
        with connection(url, _COMPLETION_TIMEOUT_S) as client:
            answer = client.get(f"{url.rstrip('/')}/v1/limits", params=query)
        items: list[dict[str, Any]] = answer.raise_for_status().json()["items"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, typer.Exit):
        return []
    return [item for item in items if item["limits"] is not None]


def segment(id_: str) -> str:
    """Return *id_* escaped as one segment of a path.

    >>> segment("a/b"), segment("..")  # an unescaped ".." would go up
    ('a%2Fb', '%2E%2E')
    """
    return "%2E" * len(id_) if id_ in (".", "..") else quote(id_, safe="")


def _sentence(problem: Any) -> str:
    """Return a problem+json document as a sentence."""
    if not isinstance(problem, dict):
        return str(problem)
    text = f"{problem.get('title', 'refused')}: {problem.get('detail', '')}"
    name = str(problem.get("type", "")).rpartition(":")[2]
    return f"{text}; {remedy}" if (remedy := _REMEDIES.get(name, problem.get("remedy"))) else text
