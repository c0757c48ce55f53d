"""A client of ``/v1/check`` that uses little CPU: one connection, one request at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from stoplog.client.answer import Answer
from stoplog_gateway.cli.gateway_options import find_token, tls_context
from stoplog_gateway.cli.load_generator import LoadFailed, SendCheck

_TIMEOUT_S: Final = 10.0
"""A gateway answers within its deadline. After this time it is considered gone."""

_decode: Final = msgspec.json.Decoder(Answer).decode
_encode: Final = msgspec.json.Encoder().encode


@asynccontextmanager
async def connected(url: str, callers: int) -> AsyncIterator[list[SendCheck]]:
    """Return functions that send checks to the gateway at *url*, each on a connection of its own.

    Raises:
        LoadFailed: the gateway accepts no more connections.
    """
    connections = [_Connection(url) for _ in range(callers)]
    try:
        for connection in connections:
            await connection.open()
        yield [connection.check for connection in connections]
    finally:
        for connection in connections:
            connection.close()


class _Connection(asyncio.Protocol):
    """A kept-alive connection. httptools calls the methods named ``on_…``."""

    _transport: asyncio.Transport | None = None
    _answer: asyncio.Future[Answer]

    def __init__(self, url: str) -> None:
        self._url = url
        self._parts = parts = urlsplit(url)
        path = f"{parts.path.rstrip('/')}/v1/check"
        fields = {"Host": parts.netloc, "Content-Type": "application/json"}
        if (token := find_token(url)) is not None:
            fields["Authorization"] = f"Bearer {token}"
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._head = f"POST {path} HTTP/1.1\r\n{lines}".encode()
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""

    async def open(self) -> None:
        loop, secure = asyncio.get_running_loop(), self._parts.scheme == "https"
        port = self._parts.port or (443 if secure else 80)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await loop.create_connection(
                    lambda: self, self._parts.hostname or "", port, ssl=tls_context() if secure else None
                )
        except OSError as exc:
            raise LoadFailed(f"{self._url} accepts no more connections ({exc}): use fewer --callers") from exc

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def check(self, client: str) -> Answer:
        """Send one check of cost 1 and return its answer.

        Raises:
            LoadFailed: the connection was lost, or the answer is not valid.
        """
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        body = _encode({"client_id": client})
        self._transport.write(b"%sContent-Length: %d\r\n\r\n%s" % (self._head, len(body), body))
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await self._answer
        except TimeoutError:
            raise LoadFailed(f"{self._url} did not answer a check in {_TIMEOUT_S:g} s") from None

    # --- events of the connection ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as exc:
            self._fail(f"did not answer in HTTP ({exc})")

    def on_body(self, part: bytes) -> None:
        self._body += part

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        if (status := self._parser.get_status_code()) != 200:
            return self._fail(f"answered a check with {status}: {body[:200].decode(errors='replace')}")
        try:
            answer = _decode(body)
        except msgspec.MsgspecError as exc:
            return self._fail(f"gave an invalid answer to a check: {exc}")
        if not self._answer.done():
            self._answer.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("closed the connection" if exc is None else f"closed the connection ({exc})")

    def _fail(self, what: str) -> None:
        answer = getattr(self, "_answer", None)
        if answer is not None and not answer.done():
            answer.set_exception(LoadFailed(f"{self._url} {what}: see its log"))
