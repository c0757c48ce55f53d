"""Tokens and TLS of the gRPC service, with real clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from stoplog_gateway.access.control import AccessControl
from stoplog_gateway.access.tls import TlsFiles
from stoplog_gateway.access.watched_files import FileWatcher
from stoplog_gateway.envoy import envoy_server
from stoplog_gateway.envoy.health import HEALTH_SERVICE, SERVING
from stoplog_gateway.envoy.mapping import DescriptorMapping
from stoplog_gateway.envoy.messages import (
    METHOD,
    OK,
    SERVICE,
    HealthCheckRequest,
    HealthCheckResponse,
    RateLimitRequest,
    RateLimitResponse,
)
from stoplog_gateway.ports import free_port
from stoplog_gateway.settings import GatewaySettings

from tests.support.access import access_control
from tests.support.certificates import Certificates
from tests.support.fake_limiter import FakeLimiter

TOKENS = {"check-token": "check", "read-token": "read", "admin-token": "admin"}


@asynccontextmanager
async def serving(
    limiter: FakeLimiter, *, access: AccessControl | None = None, tls: TlsFiles | None = None
) -> AsyncIterator[str]:
    """Serve; yield the address."""
    address = f"127.0.0.1:{free_port()}"
    server = envoy_server(
        GatewaySettings(envoy=address),
        limiter,
        DescriptorMapping(),
        shared=False,
        is_ready=limiter.is_ready,
        access=access,
        tls=tls,
    )
    assert server is not None
    async with server:
        yield address


async def decide(channel: grpc.aio.Channel, **metadata: str) -> int:
    """Return the code of the answer to one check."""
    call = channel.unary_unary(
        f"/{SERVICE}/{METHOD}",
        request_serializer=RateLimitRequest.SerializeToString,
        response_deserializer=RateLimitResponse.FromString,
    )
    request = RateLimitRequest(domain="d")
    request.descriptors.add().entries.add(key="user", value="a")
    fields = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    response = await call(request, metadata=fields, timeout=30)
    return int(response.overall_code)


async def test_call_needs_a_token_with_the_scope_check_if_checks_do() -> None:
    limiter = FakeLimiter()
    access = access_control(TOKENS, check_needs_token=True)
    async with serving(limiter, access=access) as address, grpc.aio.insecure_channel(address) as channel:
        for token in ("check-token", "admin-token"):
            assert await decide(channel, stoplog_token=token, authorization="Bearer of the caller") == OK
        refused = {
            "UNAUTHENTICATED": [{}, {"stoplog_token": "wrong"}, {"authorization": "Bearer check-token"}],
            "PERMISSION_DENIED": [{"stoplog_token": "read-token"}],
        }
        for code, calls in refused.items():
            for metadata in calls:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await decide(channel, **metadata)
                assert caught.value.code().name == code
                assert "token" in (caught.value.details() or "")
        health = channel.unary_unary(
            f"/{HEALTH_SERVICE}/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        assert (await health(HealthCheckRequest(), timeout=30)).status == SERVING
    assert len(limiter.checks) == 2


async def test_call_needs_no_token_by_default() -> None:
    limiter = FakeLimiter()
    access = access_control(TOKENS)
    async with serving(limiter, access=access) as address, grpc.aio.insecure_channel(address) as channel:
        assert await decide(channel) == OK
        assert await decide(channel, stoplog_token="wrong") == OK


def credentials(files: Certificates, *, with_certificate: bool) -> grpc.ChannelCredentials:
    ca = files.ca_file.read_bytes()
    if not with_certificate:
        return grpc.ssl_channel_credentials(ca)
    return grpc.ssl_channel_credentials(
        ca, files.client_key_file.read_bytes(), files.client_cert_file.read_bytes()
    )


async def call_with(files: Certificates, address: str, *, with_certificate: bool) -> int:
    target = address.replace("127.0.0.1", "localhost")
    given = credentials(files, with_certificate=with_certificate)
    # Without it, gRPC shares the connections of channels with equal arguments.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(target, given, options) as channel:
        return await decide(channel)


@pytest.mark.parametrize("mutual", [False, True])
async def test_call_over_tls_is_answered_and_new_files_count_for_new_connections(
    tmp_path: Path, mutual: bool
) -> None:
    files, watcher = Certificates(tmp_path), FileWatcher()
    tls = TlsFiles(files.cert_file, files.key_file, files.ca_file if mutual else None, watcher)
    async with serving(FakeLimiter(), tls=tls) as address:
        for _ in range(2):
            assert await call_with(files, address, with_certificate=mutual) == OK
            if mutual:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call_with(files, address, with_certificate=False)
                assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            files.renew()
            [watched] = watcher._watched
            watched.update(watched.read())
            watched.update(watched.read())
            assert watched.loaded
    async with serving(FakeLimiter(), tls=tls) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await decide(channel)
