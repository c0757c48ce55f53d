"""The load of ``stoplog bench``, and its client when the gateway fails."""

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


async def test_load_ends_after_the_maximum_of_checks() -> None:
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


async def test_load_ends_after_its_time() -> None:
    async def ask(_: str) -> Answer:
        await asyncio.sleep(0.001)
        return ALLOWED

    tally = Tally()
    await generate_load([ask], tally, seconds=0.05)
    assert tally.checks > 1
    assert tally.seconds >= 0.05
    assert min(tally.percentiles_ms(0)) >= 1


async def test_load_ends_with_the_first_failure() -> None:
    async def ask(client: str) -> Answer:
        if client == "stoplog-bench-50":
            raise LoadFailed("gone")
        await asyncio.sleep(0)
        return ALLOWED

    with pytest.raises(LoadFailed, match="gone"):
        await generate_load([ask] * 3, Tally(), seconds=60)


def test_percentiles_without_checks_are_0() -> None:
    assert Tally().percentiles_ms(50, 99) == [0, 0]


@asynccontextmanager
async def serving(answer: Callable[[bytes], bytes]) -> AsyncIterator[str]:
    """Run a server that sends *answer* of what it got, and closes the connection after an empty one."""

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


async def test_raw_client_sends_valid_http_on_one_connection() -> None:
    got: list[bytes] = []
    expected = Answer(True, 9, 8, 1, 0, 1)

    def answer(data: bytes) -> bytes:
        got.append(data)
        return response(msgspec.json.encode(expected))

    async with serving(answer) as url, connected(url, 2) as callers:
        for ask in callers:
            for _ in range(2):
                assert await ask("zoë") == expected
        host = url.split("/")[2].encode()
    asked = b'{"client_id":"zo\xc3\xab"}'
    head = b"POST /base/v1/check HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n" % host
    assert got == [head + b"Content-Length: %d\r\n\r\n%s" % (len(asked), asked)] * 4


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (response(b"busy", b"503 Service Unavailable"), "answered a check with 503: busy"),
        (response(b"[]"), "gave an invalid answer to a check"),
        (b"hello", "did not answer in HTTP"),
        (b"", "closed the connection"),
    ],
    ids=["refused", "no answer", "no HTTP", "hung up"],
)
async def test_raw_client_without_a_valid_answer_says_what_it_got(what: bytes, expected: str) -> None:
    async with serving(lambda _: what) as url, connected(url, 1) as [ask]:
        with pytest.raises(LoadFailed, match=expected):
            await ask("alice")


async def test_raw_client_without_a_connection_names_the_remedy() -> None:
    with pytest.raises(LoadFailed, match="use fewer --callers"):
        async with connected(f"http://127.0.0.1:{free_port()}", 1):
            raise AssertionError
