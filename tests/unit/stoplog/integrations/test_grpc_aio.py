"""The interceptor in a real server of grpc.aio. The store of the limiter is a fake that denies odd costs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from stoplog import InvalidInput, Limiter
from stoplog.integrations.grpc_aio import RateLimitInterceptor, metadata
from stoplog.wire.checks import Check
from tests.support.fake_kafka import Kafka

KEY = (("x-api-key", "alice"),)


async def echo(request: bytes, context: Any) -> bytes:
    return request


async def repeat(request: bytes, context: Any) -> AsyncIterator[bytes]:
    yield request
    yield request


async def join(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return b"".join([one async for one in requests])


async def mirror(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for one in requests:
        yield one


HANDLERS: dict[str, Any] = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Repeat": grpc.unary_stream_rpc_method_handler(repeat),
    "Join": grpc.stream_unary_rpc_method_handler(join),
    "Mirror": grpc.stream_stream_rpc_method_handler(mirror),
}


async def call(channel: Any, name: str, keys: Any = KEY, requests: Any = (b"a", b"b")) -> bytes:
    """Call a method, and return what it answers."""
    path = f"/test.Test/{name}"
    if name == "Echo":
        return bytes(await channel.unary_unary(path)(b"a", metadata=keys))
    if name == "Repeat":
        return b"".join([one async for one in channel.unary_stream(path)(b"a", metadata=keys)])
    if name == "Join":
        return bytes(await channel.stream_unary(path)(iter(requests), metadata=keys))
    return b"".join([one async for one in channel.stream_stream(path)(iter(requests), metadata=keys)])


@asynccontextmanager
async def serving(limiter: Limiter, **options: Any) -> AsyncIterator[Any]:
    interceptor = RateLimitInterceptor(limiter=limiter, **{"identify": metadata("x-api-key"), **options})
    server = grpc.aio.server(interceptors=[interceptor])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", HANDLERS),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


@pytest.fixture
def limiter(kafka: type[Kafka]) -> Limiter:
    return Limiter("kafka:9092", deadline_ms=60_000)


async def test_allowed_calls_of_all_kinds_reach_their_methods(limiter: Limiter) -> None:
    async with serving(limiter, cost=2, plan="gold", resource=lambda details: details.method) as channel:
        for name, answer in {"Echo": b"a", "Repeat": b"aa", "Join": b"ab", "Mirror": b"ab"}.items():
            assert await call(channel, name) == answer
    transport: Any = limiter._engine.transport
    assert transport.checks == [Check("alice", 2, "gold", f"/test.Test/{name}") for name in HANDLERS]


@pytest.mark.parametrize("name", ["x-api-key", "key-bin"])
async def test_call_with_several_values_of_its_metadata_is_denied(limiter: Limiter, name: str) -> None:
    values = [value.encode() if name == "key-bin" else value for value in ("a", "b", "", "a")]
    async with serving(limiter, cost=2, identify=metadata(name)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as denied:
            await call(channel, "Echo", tuple((name, value) for value in values[:2]))
        assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "several values" in str(denied.value.details())
        assert await call(channel, "Echo", tuple((name, value) for value in (values[0], *values[2:]))) == b"a"
        assert await call(channel, "Echo", ((name, values[2]),)) == b"a"
        if name == "key-bin":
            await call(channel, "Echo", ((name, b"a,b"),))
    transport: Any = limiter._engine.transport
    clients = [check.client for check in transport.checks]
    assert clients == (["a", "a,b"] if name == "key-bin" else ["a"])


@pytest.mark.parametrize("name", HANDLERS)
async def test_denied_call_ends_with_resource_exhausted(limiter: Limiter, name: str) -> None:
    async with serving(limiter, cost=3) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as denied:
            # A client of grpc.aio may fail with INTERNAL if the call ends while it sends requests.
            await call(channel, name, requests=())
    assert denied.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert denied.value.details() == "the limit of 100 is used up; try again in 1 s"
    assert dict(denied.value.trailing_metadata())["retry-after-ms"] == "9"


async def test_name_of_metadata_is_found_whatever_its_case(limiter: Limiter) -> None:
    async with serving(limiter, identify=metadata("X-Api-Key"), cost=2) as channel:
        await call(channel, "Echo")
    transport: Any = limiter._engine.transport
    assert transport.checks == [Check("alice", 2)]
    for wrong in ("", "api key", "clé"):
        with pytest.raises(InvalidInput, match=r"name: .* is no key of metadata"):
            metadata(wrong)


async def test_call_without_a_client_or_method_is_not_limited(limiter: Limiter) -> None:
    async with serving(limiter, cost=3) as channel:
        assert await call(channel, "Echo", ()) == b"a"
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await channel.unary_unary("/test.Test/None")(b"a", metadata=KEY)
    assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_failing_check_fails_open_or_closed(limiter: Limiter, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(limiter, cost=-1) as channel:
        assert await call(channel, "Echo") == b"a"
    async with serving(limiter, cost=-1, on_unavailable="deny") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as denied:
            await call(channel, "Echo")
    assert denied.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "a call failed open and was not counted: cost: " in caplog.text
    with pytest.raises(InvalidInput, match="on_unavailable"):
        RateLimitInterceptor(limiter=limiter, identify=metadata("a"), on_unavailable="never")  # type: ignore[arg-type]
