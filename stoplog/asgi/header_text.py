"""Requests whose header fields are decoded as at every other interface (:mod:`stoplog.identity.header_text`).

Starlette decodes header fields as Latin-1, so ``élise`` would be the client ``Ã©lise``.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request

from stoplog.policy import digest_id


class TextHeaders(Headers):
    """Header fields in UTF-8. A value that is not UTF-8 is its digest."""

    def __getitem__(self, key: str) -> str:
        name = key.lower().encode("latin-1")
        for field, value in self.raw:
            if field == name:
                return _text(value)
        raise KeyError(key)

    def getlist(self, key: str) -> list[str]:
        """Return all values of a field."""
        name = key.lower().encode("latin-1")
        return [_text(value) for field, value in self.raw if field == name]

    def values(self) -> list[str]:  # type: ignore[override]
        """Return the values of all fields."""
        return [_text(value) for _, value in self.raw]

    def items(self) -> list[tuple[str, str]]:  # type: ignore[override]
        """Return names and values of all fields."""
        return [(field.decode("latin-1"), _text(value)) for field, value in self.raw]


class _TextConnection(HTTPConnection):
    @property
    def headers(self) -> Headers:
        return TextHeaders(raw=self.scope["headers"])


class _TextRequest(Request):
    @property
    def headers(self) -> Headers:
        return TextHeaders(raw=self.scope["headers"])


def with_text(connection: HTTPConnection) -> HTTPConnection:
    """Return the same request or WebSocket with header fields in UTF-8."""
    if isinstance(connection, Request):
        return _TextRequest(connection.scope, connection.receive)
    return _TextConnection(connection.scope)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return digest_id(value)
