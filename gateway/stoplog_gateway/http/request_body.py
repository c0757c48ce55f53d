"""Request bodies: check the type, limit the size while the body arrives, and decode JSON."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, TypeVar

import msgspec
from fastapi import Depends, Request

from stoplog.asgi.rate_limit_headers import Headers
from stoplog.asgi.responses import JSON
from stoplog.errors import InvalidInput
from stoplog_gateway.http.problems import CONTENT_TYPE, MALFORMED, TOO_LARGE, ProblemError

MAX_BODY: Final = 1 << 20
"""Maximum bytes of a body, unless one of the limits below applies."""

MAX_LIST_BODY: Final = 4 << 20
"""Maximum bytes of a list of checks: 10,000 checks of about 400 bytes."""

MAX_SLOW_BODY: Final = 32 << 10
"""Maximum bytes of a body that protobuf parses in Python. Parsing blocks the event loop for up to 40 ms."""

_MAX_LENGTH_DIGITS: Final = 6
"""Digits of ``Content-Length``. Bodies below 1 MB are within the limit of every route."""

_MESSAGE: Final = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_NAMED: Final = re.compile(
    r"Object (?P<what>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL
)
T = TypeVar("T")


def json_body(limit: int) -> Callable[[Request], Awaitable[bytes]]:
    """Return a dependency that reads a JSON body of at most *limit* bytes.

    The content type is required as a protection against other sites: for a JSON request to another origin, a
    browser sends a preflight request first, which the gateway does not answer. Without the type, a page could
    send requests to any address, including loopback.
    """

    async def read(request: Request) -> bytes:
        require_json(request.headers.get("content-type"))
        return await read_body(request, limit)

    return read


JsonBody = Annotated[bytes, Depends(json_body(MAX_BODY))]
JsonListBody = Annotated[bytes, Depends(json_body(MAX_LIST_BODY))]
SlowJsonBody = Annotated[bytes, Depends(json_body(MAX_SLOW_BODY))]


def media_type(headers: Headers) -> str | None:
    """Return the first ``Content-Type`` in *headers*, with names in lower case, or ``None``."""
    value = next((value for name, value in headers if name == b"content-type"), None)
    return None if value is None else value.decode("latin-1")


def require_json(content_type: str | None) -> None:
    """Refuse a content type other than JSON.

    Raises:
        ProblemError: 415.
    """
    if content_type is None or not is_json(content_type):
        shown = "no Content-Type" if content_type is None else content_type
        raise ProblemError(
            CONTENT_TYPE, f"{shown} is not JSON", "Content-Type", "send Content-Type: application/json"
        )


def is_json(content_type: str) -> bool:
    """Return whether *content_type* is JSON, with any parameters.

    >>> [is_json(t) for t in ("application/json", "Application/JSON; charset=utf-8", "application/jsonx", "")]
    [True, True, False, False]
    """
    return content_type.partition(";")[0].strip().lower() == "application/json"


def announces_json(headers: Headers) -> bool:
    """Return whether *headers* announce a JSON body of a size that every route accepts.

    The first of repeated fields counts, as it does in the routes.
    """
    media = length = None
    for name, value in headers:
        if name == b"content-type" and media is None:
            media = value
        elif name == b"content-length" and length is None:
            length = value
    if media is None or not length or len(length) > _MAX_LENGTH_DIGITS:
        return False
    return media == JSON or is_json(media.decode("latin-1"))


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body. Refuse a larger one before it is in memory, with or without ``Content-Length``.

    Raises:
        ProblemError: 413. The response closes the connection, because the rest of the body is still unread.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > limit):
        raise too_large(limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def too_large(limit: int) -> ProblemError:
    """Return the problem of a body of more than *limit* bytes. Its response closes the connection."""
    most = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
    return ProblemError(
        TOO_LARGE,
        f"the body exceeds {most}",
        "body",
        f"send at most {most} per request",
        [(b"connection", b"close")],
    )


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode *body*.

    Raises:
        ProblemError: 400, the body is not JSON.
        InvalidInput: The JSON does not match the schema; names the field.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as exc:
        raise _invalid(str(exc)) from exc
    except UnicodeDecodeError as exc:
        raise ProblemError(MALFORMED, "the body is not UTF-8", "body", "send JSON in UTF-8") from exc
    except msgspec.DecodeError as exc:
        raise ProblemError(MALFORMED, str(exc), "body", "send exactly one JSON value") from exc
    except RecursionError as exc:
        raise ProblemError(
            MALFORMED, "the body is nested too deeply", "body", "see its schema in /docs"
        ) from exc


def whole_number(value: float, field: str) -> int:
    """Return *value* as an integer: to JSON, ``3.0`` is one.

    Raises:
        InvalidInput: The value has a fraction; names *field*.

    >>> whole_number(3.0, "cost")
    3
    """
    number = int(value)
    if number != value:
        raise InvalidInput(field, "not a whole number, got float", "see its type in /docs")
    return number


def _invalid(message: str) -> InvalidInput:
    """Convert msgspec's message, such as ``Expected `int`, got `str` - at `$[3].cost```."""
    match = _MESSAGE.fullmatch(message)
    assert match is not None
    what, path = match["what"], match["path"] or ""
    if named := _NAMED.fullmatch(what):
        name = named["name"] or '""'
        field = f"{path}.{name}" if path else name
        if named["what"] == "missing required":
            return InvalidInput(field, "missing", "add it")
        return InvalidInput(field, "unknown field", "remove it, or check its spelling")
    if "out of range" in what:
        return InvalidInput(path or "body", "out of bounds", "use a smaller number")
    problem = what.replace("`", "").replace("Expected ", "not ", 1)
    problem = problem.replace("not int | float,", "not a whole number,")
    return InvalidInput(path or "body", problem, "see its type in /docs")
