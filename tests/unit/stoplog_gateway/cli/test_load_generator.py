"""The load of ``stoplog bench``, and its callers of a gateway that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from stoplog_gateway.cli.load_generator import LoadFailed, Tally, generate_load
from stoplog_gateway.cli.raw_client import connected
from stoplog_gateway.ports import free_port

from stoplog.client.answer import Answer
from stoplog.client.fail_open import BROKER, FAIL_OPEN

ALLOWED = Answer(True, 100, 99, 60_000, 0, -1)
DENIED = Answer(False, 100, 0, 60_000, 2_001, 7)


async def test_it_ends_when_so_many_checks_were_asked_for() -> None:
    asked: list[str] = []
    answers = {"stoplog-bench-0": ALLOWED, "stoplog-bench-1": DENIED, "stoplog-bench-2": FAIL_OPEN[BROKER]}

    async def ask(client: str) -> Answer:
        asked.append(client)
        await asyncio.sleep(0)
        return answers[client]

    tally = Tally()
    await generate_load([ask] * 4, tally, seconds=60, clients=3, max_checks=100)
    assert len(asked) == tally.checks == 100
    assert (tally.allowed, tally.denied, tally.degraded) == (34, 33, 33)
    assert 0 < tally.seconds < 60


async def test_it_ends_when_its_time_is_over() -> None:
    async def ask(_: str) -> Answer:
        await asyncio.sleep(0.001)
        return ALLOWED

    tally = Tally()
    await generate_load([ask], tally, seconds=0.05)
    assert tally.checks > 1
    assert tally.seconds >= 0.05
    assert min(tally.percentiles_ms(0)) >= 1


async def test_it_ends_with_the_first_failure() -> None:
    async def ask(client: str) -> Answer:
        if client == "stoplog-bench-50":
            raise LoadFailed("gone")
        await asyncio.sleep(0)
        return ALLOWED

    with pytest.raises(LoadFailed, match="gone"):
        await generate_load([ask] * 3, Tally(), seconds=60)


def test_percentiles_of_nothing() -> None:
    assert Tally().percentiles_ms(50, 99) == [0, 0]


@asynccontextmanager
async def serving(answer: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    """A server that answers what it gets, and hangs up on an empty answer."""

    served: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())  # type: ignore[arg-type]
        while data := await reader.read(65_536):
            if not (response := answer(data)):
                break
            writer.write(response)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1")
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base/"
    await asyncio.gather(*served)


def response(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


async def test_a_caller_asks_as_http_wants_it() -> None:
    got: list[bytes] = []
    told = Answer(True, 9, 8, 1, 0, 1)

    def answer(data: bytes) -> bytes:
        got.append(data)
        return response(msgspec.json.encode(told))

    async with serving(answer) as url, connected(url, 2) as callers:
        for ask in callers:
            for _ in range(2):
                assert await ask("zoë") == told
        host = url.split("/")[2].encode()
    asked = b'{"client_id":"zo\xc3\xab"}'
    head = b"POST /base/v1/check HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n" % host
    assert got == [head + b"Content-Length: %d\r\n\r\n%s" % (len(asked), asked)] * 4


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (response(b"busy", b"503 Service Unavailable"), "answered a check with 503: busy"),
        (response(b"[]"), "gave an invalid answer to a check"),
        (b"hello", "did not answer in HTTP"),
        (b"", "closed the connection"),
    ],
    ids=["refused", "no answer", "no HTTP", "hung up"],
)
async def test_a_caller_that_is_not_answered_says_what_it_got(what: bytes, told: str) -> None:
    async with serving(lambda _: what) as url, connected(url, 1) as [ask]:
        with pytest.raises(LoadFailed, match=told):
            await ask("alice")


async def test_a_gateway_that_takes_no_connection() -> None:
    with pytest.raises(LoadFailed, match="use fewer --callers"):
        async with connected(f"http://127.0.0.1:{free_port()}", 1):
            raise AssertionError
