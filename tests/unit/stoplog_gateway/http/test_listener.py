"""HTTPS, and connections in overload, with real clients and real sockets."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import uvicorn
from stoplog_gateway.access.tls import TlsFiles
from stoplog_gateway.access.watched_files import FileWatcher
from stoplog_gateway.http.app import create_app
from stoplog_gateway.http.connections import ConnectionLimits, Connections
from stoplog_gateway.http.fast_path import FastPath
from stoplog_gateway.http.protocol import GatewayProtocol
from stoplog_gateway.http.turns import Turns
from stoplog_gateway.server.gateway_server import GatewayServer
from stoplog_gateway.settings import GatewaySettings

from tests.support.certificates import Certificates
from tests.support.fake_limiter import FakeLimiter
from tests.support.on_uvloop import on_uvloop
from tests.support.protocol_connection import final_statuses, status_of

CHECK = (
    b"POST /v1/check HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 18\r\n\r\n{"client_id": "a"}'
)
DENIED = CHECK.replace(b"18", b"44").replace(b"}", b', "on_unavailable": "deny"}')
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
DEADLINE_S = 1.0
QUICK = ConnectionLimits(keepalive_s=60, head_s=0.5, body_s=60)


class Running(NamedTuple):
    """A server, and what a test looks at."""

    url: str
    port: int
    connections: Connections
    watcher: FileWatcher
    limiter: FakeLimiter

    def closed(self) -> dict[str, int]:
        """Return how many connections the server closed, by reason."""
        _, closed = self.connections.collect()
        return {s.labels["reason"]: int(s.value) for s in closed.samples if s.value}

    def read_files_again(self) -> None:
        """Read the files twice, as the watcher does in two turns."""
        [files] = self.watcher._watched
        files.update(files.read())
        files.update(files.read())


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def nothing() -> None:
    pass


@asynccontextmanager
async def serving(
    files: Certificates | None,
    *,
    mutual: bool = False,
    limits: ConnectionLimits | None = None,
    turns: Turns | None = None,
) -> AsyncIterator[Running]:
    limiter, connections, watcher = FakeLimiter(), Connections(limits, turns), FileWatcher()
    tls = None
    if files is not None:
        tls = TlsFiles(files.cert_file, files.key_file, files.ca_file if mutual else None, watcher)
    protocol: Any = partial(GatewayProtocol, FastPath(limiter, legacy_headers=False), connections)
    app = create_app(GatewaySettings(), limiter)
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None)
    server = GatewayServer(
        config,
        on_serving=lambda: None,
        drain=lambda: None,
        drain_s=0,
        close=nothing,
        tls=tls,
        connections=connections,
    )
    config.load()
    server.lifespan = config.lifespan_class(config)
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    await server.startup([sock])
    try:
        yield Running(f"https://localhost:{port}", port, connections, watcher, limiter)
    finally:
        server.force_exit = True
        await server.shutdown([sock])


def client(running: Running, context: ssl.SSLContext) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=running.url, verify=context, trust_env=False, timeout=10)


async def exchange(running: Running, context: ssl.SSLContext, *parts: bytes) -> bytes:
    """Send *parts* over TLS, and return what arrives until the server closes the connection."""
    reader, writer = await asyncio.open_connection("localhost", running.port, ssl=context)
    for part in parts:
        writer.write(part)
        await writer.drain()
    response = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return response


@on_uvloop
async def test_requests_over_tls_are_answered_by_both_paths(files: Certificates) -> None:
    async with serving(files) as running, client(running, files.client_context()) as http:
        for _ in range(3):
            assert (await http.post("/v1/check", json={"client_id": "a"})).json()["allowed"]
            assert (await http.get("/healthz")).status_code == 200
        many = [{"client_id": "a"}] * 10_000  # a body of many TLS records
        assert len((await http.post("/v1/checks", json=many)).json()) == 10_000
        assert len(running.limiter.checks) == 10_003
        assert (await http.post("/v1/check", content=b"x" * (2 << 20))).status_code in (413, 415)
        same = {"origin": running.url}
        assert (await http.post("/v1/check", json={"client_id": "a"}, headers=same)).status_code == 200
        assert (await http.get("/healthz", headers={"origin": "https://evil.example"})).status_code == 403


@on_uvloop
async def test_pipelined_requests_over_tls_are_answered_in_order(files: Certificates) -> None:
    async with serving(files) as running:
        last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        stream = (CHECK + GET) * 20 + last
        pieces = [stream[i : i + 1_000] for i in range(0, len(stream), 1_000)]
        response = await exchange(running, files.client_context(), *pieces)
        assert final_statuses(response) == [200] * 41


@on_uvloop
async def test_refused_request_over_tls_gets_its_response_before_the_end(files: Certificates) -> None:
    async with serving(files) as running:
        bad = b"POST /v1/check HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"
        reader, writer = await asyncio.open_connection("localhost", running.port, ssl=files.client_context())
        writer.write(bad + b"x" * 100_000)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        assert final_statuses(head) == [400]
        assert b"connection: close" in head
        writer.close()


@on_uvloop
async def test_client_without_a_certificate_is_refused_if_a_client_ca_is_set(files: Certificates) -> None:
    async with serving(files, mutual=True) as running:
        async with client(running, files.client_context(with_certificate=True)) as http:
            assert (await http.get("/healthz")).status_code == 200
        async with client(running, files.client_context()) as http:
            with pytest.raises(httpx.TransportError):
                await http.get("/healthz")
        other = Certificates(mkdir(files.folder / "other"))
        context = files.client_context()
        context.load_cert_chain(other.client_cert_file, other.client_key_file)
        async with client(running, context) as http:
            with pytest.raises(httpx.TransportError):
                await http.get("/healthz")
        assert running.closed() == {"tls_failed": 2}
        assert not running.limiter.checks


def mkdir(path: Path) -> Path:
    path.mkdir()
    return path


@on_uvloop
async def test_new_files_count_for_new_connections_and_open_ones_go_on(
    files: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    old = files.client_context(with_certificate=True)
    async with serving(files, mutual=True) as running, client(running, old) as http:
        assert (await http.get("/healthz")).status_code == 200
        files.renew()
        running.read_files_again()
        async with client(running, files.client_context(with_certificate=True)) as renewed:
            assert (await renewed.get("/healthz")).status_code == 200
        assert (await http.get("/healthz")).status_code == 200
        # The CA that signed the old client certificate is no longer in the file.
        stale = files.client_context()
        stale.load_cert_chain(files.client_cert_file, files.client_key_file)
        files.renew()
        running.read_files_again()
        stale.load_verify_locations(files.ca_file)
        async with client(running, stale) as refused:
            with pytest.raises(httpx.TransportError):
                await refused.get("/healthz")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@on_uvloop
async def test_broken_files_keep_the_old_certificate_with_one_error(
    files: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    good = {path: path.read_bytes() for path in (files.cert_file, files.key_file)}
    other = Certificates(mkdir(files.folder / "other"))
    broken = [
        (files.cert_file, b"nonsense"),
        (files.key_file, b""),
        (files.key_file, other.key_file.read_bytes()),  # of another certificate
        (files.cert_file, None),
    ]
    async with serving(files) as running:
        for path, content in broken:
            caplog.clear()
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
            for _ in range(3):
                running.read_files_again()
            async with client(running, files.client_context()) as http:
                assert (await http.get("/healthz")).status_code == 200
            [error] = [record for record in caplog.records if record.levelname == "ERROR"]
            assert str(path) in error.getMessage()
            assert running.watcher._watched[0].failing
            path.write_bytes(good[path])
            running.read_files_again()
            assert not running.watcher._watched[0].failing


@on_uvloop
async def test_connection_that_ends_no_handshake_is_counted_and_closed(files: Certificates) -> None:
    async with serving(files, limits=QUICK) as running:
        began = time.monotonic()
        for sent in (b"", b"\x16\x03\x01"):
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(sent)
            with suppress(ConnectionError):  # the end is a reset
                assert await asyncio.wait_for(reader.read(), 30) == b""
            writer.close()
        assert time.monotonic() - began < 30
        assert running.closed()["tls_timeout"] == 2
        assert len(running.connections) == 0


@on_uvloop
async def test_connection_without_tls_is_closed_and_counted(files: Certificates) -> None:
    async with serving(files) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(GET)
        assert not final_statuses(await asyncio.wait_for(reader.read(), 30))
        writer.close()
        assert running.closed() == {"tls_failed": 1}


@on_uvloop
async def test_handshakes_count_towards_the_bound_on_connections(files: Certificates) -> None:
    limits = ConnectionLimits(keepalive_s=60, head_s=60, body_s=60, max_open=2)
    async with serving(files, limits=limits) as running:
        waiting = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        assert running.closed() == {"refused": 1}
        for _, other in waiting:
            other.close()


class CrowdedTurns(Turns):
    """Turns whose connections send more than there is time for."""

    crowded = True

    @property
    def is_crowded(self) -> bool:
        return self.crowded


async def exchange_plainly(running: Running, sent: bytes, *, before_accepted: bool = True) -> bytes:
    """Send *sent* on a new connection, and return what arrives within the response or until the end."""
    with socket.socket() as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        if before_accepted:  # the event loop accepts it only after this
            with suppress(BlockingIOError):
                sock.connect(("127.0.0.1", running.port))
            select.select([], [sock], [], 10)
            sock.send(sent)
        else:
            await loop.sock_connect(sock, ("127.0.0.1", running.port))
            await asyncio.sleep(0.05)
            await loop.sock_sendall(sock, sent)
        return await asyncio.wait_for(loop.sock_recv(sock, 65_536), 30)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (CHECK, 503),
        (GET, 200),
        (GET.replace(b"GET", b"HEAD"), 200),
        (GET.replace(b"/healthz", b"/v1/status"), 503),
        (GET.replace(b"/healthz", b"/v1/authorize?cost=0"), 403),
        (GET.replace(b"/healthz", b"/v1/authorize/healthz"), 403),
        (GET.replace(b"/healthz", b"/v1/%61uthorize"), 403),
        (GET.replace(b"/healthz", b"http://localhost/v1/authorize?cost=0"), 403),
        (GET.replace(b"/healthz", b"http://localhost/healthz"), 200),
        (GET.replace(b"/healthz", b"/v1/status?unavailable=deny"), 503),
        (DENIED, 200),
        (DENIED.replace(b"44", b"49").replace(b'"deny"', rb'"\u0064eny"'), 200),
        (
            DENIED.replace(b"Content-Length: 44", b"Transfer-Encoding: chunked").replace(
                DENIED[-44:], b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (40, DENIED[-44:-4], 4, DENIED[-4:])
            ),
            200,
        ),
        (CHECK.replace(b"Host", b"X: " + b"x" * 5_000 + b"\r\nHost"), 200),
        (b"\x16\x03\x01", 400),
    ],
)
@on_uvloop
async def test_new_connection_in_overload_gets_503_unless_its_request_must_be_served(
    sent: bytes, status: int
) -> None:
    async with serving(None, turns=CrowdedTurns()) as running:
        response = await exchange_plainly(running, sent)
        assert status_of(response) == status
        assert (b"overloaded" in response) == (status == 503)
        assert running.closed() == ({"overloaded": 1} if status == 503 else {})
        assert len(running.limiter.checks) == (b"client_id" in sent and status == 200)


@on_uvloop
async def test_new_connection_in_overload_is_admitted_if_it_has_sent_nothing_yet() -> None:
    async with serving(None, turns=CrowdedTurns()) as running:
        assert status_of(await exchange_plainly(running, CHECK, before_accepted=False)) == 200


@pytest.mark.parametrize(
    ("sent", "split", "status"),
    [
        pytest.param(DENIED, -44, 200, id="between head and body"),
        pytest.param(DENIED, -10, 200, id="in the body, before deny"),
        pytest.param(DENIED, -1, 200, id="before the last byte"),
        pytest.param(GET.replace(b"/healthz", b"/v1/authorize"), len(b"GET /v1/auth"), 403, id="in the path"),
        pytest.param(GET, -1, 200, id="before the end of the head"),
        pytest.param(CHECK, -18, 200, id="check that fails open"),
        pytest.param(CHECK + DENIED, -44, 200, id="in the second request"),
    ],
)
@on_uvloop
async def test_new_connection_in_overload_is_admitted_if_a_part_of_its_request_is_missing(
    sent: bytes, split: int, status: int
) -> None:
    async with serving(None, turns=CrowdedTurns()) as running:
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect(("127.0.0.1", running.port))
            select.select([], [sock], [], 10)
            sock.send(sent[:split])
            while not len(running.connections) and not running.closed():  # noqa: ASYNC110 - no event
                await asyncio.sleep(0)
            sock.send(sent[split:])
            response = await asyncio.wait_for(loop.sock_recv(sock, 65_536), 30)
        assert status_of(response) == status
        assert running.closed() == {}


@on_uvloop
async def test_many_new_connections_in_overload_are_refused_and_served_after_it() -> None:
    turns = CrowdedTurns()
    async with serving(None, turns=turns) as running:
        statuses = [status_of(await exchange_plainly(running, CHECK)) for _ in range(100)]
        assert statuses == [503] * 100
        turns.crowded = False
        assert status_of(await exchange_plainly(running, CHECK)) == 200
        assert running.closed() == {"overloaded": 100}


@on_uvloop
async def test_new_connection_with_tls_is_admitted_in_overload(files: Certificates) -> None:
    async with (
        serving(files, turns=CrowdedTurns()) as running,
        client(running, files.client_context()) as http,
    ):
        assert (await http.get("/healthz")).status_code == 200


def ask_on_new_connections(stack: ExitStack, running: Running, number: int) -> list[socket.socket]:
    """Send a check on *number* new connections, before the event loop accepts any of them."""
    socks = [
        stack.enter_context(socket.create_connection(("127.0.0.1", running.port))) for _ in range(number)
    ]
    for sock in socks:
        sock.sendall(CHECK)
        sock.setblocking(False)
    return socks


async def statuses_of(socks: list[socket.socket]) -> list[int]:
    loop = asyncio.get_running_loop()
    responses = [await asyncio.wait_for(loop.sock_recv(sock, 65_536), 30) for sock in socks]
    return [status_of(response) for response in responses]


FEW = ConnectionLimits(max_open=1_000)
"""With this bound, the listener accepts 16 connections at a time."""


@on_uvloop
async def test_connections_that_waited_for_the_deadline_get_503_while_callers_connect_too_fast() -> None:
    async with serving(None, limits=FEW, turns=Turns(DEADLINE_S)) as running:
        with ExitStack() as stack:
            late = ask_on_new_connections(stack, running, 100)
            while not len(running.connections):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0)
            time.sleep(1.2 * DEADLINE_S)  # noqa: ASYNC251 - a long turn of the event loop
            fresh = ask_on_new_connections(stack, running, 10)
            statuses = await statuses_of(late)
            assert set(statuses) == {200, 503}
            assert statuses.index(503) >= 16, "the first ones were accepted before they were late"
            assert await statuses_of(fresh) == [200] * 10, "these have not waited for long"
        assert running.closed() == {"overloaded": statuses.count(503)}


@on_uvloop
async def test_connections_that_waited_while_the_process_was_stopped_are_served() -> None:
    async with serving(None, limits=FEW, turns=Turns(DEADLINE_S)) as running:
        with ExitStack() as stack:
            late = ask_on_new_connections(stack, running, 100)
            time.sleep(1.2 * DEADLINE_S)  # noqa: ASYNC251 - nothing was accepted before this
            assert await statuses_of(late) == [200] * 100
        assert running.closed() == {}
