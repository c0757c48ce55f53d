"""The service over a real gRPC connection, with a fake limiter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry import trace
from stoplog_gateway.envoy import envoy_server
from stoplog_gateway.envoy.call import AskedDescriptor, RateLimitCall, call_of
from stoplog_gateway.envoy.mapping import DescriptorMapping, Rule
from stoplog_gateway.envoy.messages import (
    OK,
    OVER_LIMIT,
    SERVICE,
    HealthCheckRequest,
    RateLimitRequest,
    RateLimitResponse,
)
from stoplog_gateway.envoy.server import EnvoyServer
from stoplog_gateway.envoy.service import RateLimitService
from stoplog_gateway.ports import CannotListen, free_port
from stoplog_gateway.settings import GatewaySettings

from stoplog.client.answer import Answer, unwrap
from stoplog.client.fail_open import (
    BROKER,
    FAIL_CLOSED,
    FAIL_OPEN,
    INTERNAL_ERROR,
    OVERLOAD,
)
from stoplog.client.settings import Settings
from stoplog.errors import InvalidInput
from stoplog.identity.identity import Identity
from stoplog.wire.checks import Check
from tests.support.access import access_control
from tests.support.fake_limiter import FakeLimiter
from tests.support.late_turns import LateTurns

ALLOWED = Answer(True, 100, 99, 60_000, 0, -1)
DENIED = Answer(False, 10, 0, 60_000, 2_001, 7)
NEVER = Answer(False, 5, 5, 0, None, 7)
UNLIMITED = Answer(True, None, None, 0, 0, 7)


class Limiter(FakeLimiter):
    """Return ``answers`` in turn, and then the last one again and again."""

    answers: Sequence[Answer] = (ALLOWED,)

    def ask(self, check: Check, fails_closed: bool = False) -> Answer:
        super().ask(check, fails_closed)
        return self.answers[min(len(self.checks), len(self.answers)) - 1]


class Envoy:
    """A client of the service, as Envoy is."""

    def __init__(self, channel: grpc.aio.Channel, limiter: Limiter) -> None:
        self.limiter = limiter
        self._raw: Any = channel.unary_unary("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit")

    async def call_raw(self, request: bytes, *metadata: tuple[str, str]) -> Any:
        return RateLimitResponse.FromString(await self._raw(request, metadata=metadata))

    async def call(self, **fields: Any) -> Any:
        return await self.call_raw(RateLimitRequest(domain="edge", **fields).SerializeToString())


@pytest.fixture
async def envoy() -> AsyncIterator[Envoy]:
    address, limiter = f"127.0.0.1:{free_port()}", Limiter()
    async with (
        EnvoyServer(
            address,
            RateLimitService(limiter, DescriptorMapping(), legacy_headers=False),
            grace_s=1,
            shared=False,
        ),
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Envoy(channel, limiter)


def descriptor(*values: str, **fields: Any) -> dict[str, Any]:
    return {"entries": [{"key": f"key{i}", "value": value} for i, value in enumerate(values)], **fields}


async def test_each_descriptor_is_a_check_and_statuses_keep_the_order(envoy: Envoy) -> None:
    envoy.limiter.answers = (ALLOWED, DENIED, UNLIMITED)
    response = await envoy.call(
        descriptors=[descriptor("alice"), descriptor("bob", "x"), descriptor("carol")]
    )
    assert envoy.limiter.checks == [Check("alice"), Check("bob", resource="key1=x"), Check("carol")]
    assert response.overall_code == OVER_LIMIT
    assert [status.code for status in response.statuses] == [OK, OVER_LIMIT, OK]
    first, second, third = response.statuses
    assert (first.current_limit.requests_per_unit, first.limit_remaining) == (100, 99)
    assert first.duration_until_reset.seconds == 60
    assert (second.current_limit.requests_per_unit, second.limit_remaining) == (10, 0)
    assert second.duration_until_reset.seconds == 3
    assert not third.HasField("current_limit")


@pytest.mark.parametrize(
    ("hits", "own", "cost"),
    [
        (0, {}, 1),
        (7, {}, 7),
        (7, {"hits_addend": {"value": 2}}, 2),
        (7, {"hits_addend": {"value": 0}}, 0),
        (4_000_000_000, {}, 1_000_000),
        (0, {"hits_addend": {"value": 2**64 - 1}}, 1_000_000),
    ],
)
async def test_cost_of_a_descriptor_follows_its_hits_addend(
    envoy: Envoy, hits: int, own: dict[str, Any], cost: int
) -> None:
    await envoy.call(descriptors=[descriptor("alice", **own)], hits_addend=hits)
    assert envoy.limiter.checks == [Check("alice", cost)]


async def test_descriptor_with_negative_hits_is_a_refund(envoy: Envoy) -> None:
    envoy.limiter.answer = UNLIMITED
    negative = descriptor("alice", "x", hits_addend={"value": 2}, is_negative_hits=True)
    response = await envoy.call(descriptors=[negative, descriptor("bob")])
    assert envoy.limiter.refunds == [Check("alice", 2, "", "key1=x")]
    assert (envoy.limiter.checks, envoy.limiter.charges) == ([Check("bob")], [])
    assert [status.code for status in response.statuses] == [OK, OK]


async def test_descriptor_that_is_sent_after_the_response_is_a_charge() -> None:
    mapping = DescriptorMapping({"edge": [Rule("{key0}", on_unavailable="deny", after_response="key1")]})
    limiter = Limiter()
    service = RateLimitService(limiter, mapping, legacy_headers=False)
    asked = [descriptor("alice", "sent"), descriptor("alice")]
    call = call_of(RateLimitRequest(domain="edge", descriptors=asked, hits_addend=7))
    await service.decide(call)
    assert (limiter.charges, limiter.checks) == ([Check("alice", 7)], [Check("alice", 7)])
    # Without time, both are published as well.
    answers = [unwrap(one) for one in service.ask(call, has_time=False)]
    assert [answer.allowed for answer in answers] == [True, False]
    assert [answer.reason for answer in answers] == [OVERLOAD, OVERLOAD]
    assert (len(limiter.charges), len(limiter.checks)) == (2, 2)


@pytest.mark.parametrize(
    ("answers", "headers"),
    [
        ((ALLOWED,), {"ratelimit-policy": '"default";q=100', "ratelimit": '"default";r=99;t=60'}),
        (
            (ALLOWED, DENIED),
            {"ratelimit-policy": '"default";q=10', "ratelimit": '"default";r=0;t=3', "retry-after": "3"},
        ),
        ((DENIED, NEVER), {"ratelimit-policy": '"default";q=5', "ratelimit": '"default";r=5;t=0'}),
        (
            (UNLIMITED, ALLOWED, Answer(True, 10, 3, 9_000, 0, 7)),
            {"ratelimit-policy": '"default";q=10', "ratelimit": '"default";r=3;t=9'},
        ),
        ((UNLIMITED,), {}),
    ],
)
async def test_response_headers_describe_the_tightest_answer(
    envoy: Envoy, answers: Sequence[Answer], headers: dict[str, str]
) -> None:
    envoy.limiter.answers = answers
    response = await envoy.call(descriptors=[descriptor("alice")] * len(answers))
    assert {header.key: header.value for header in response.response_headers_to_add} == headers


async def test_legacy_header_fields_are_sent_if_the_settings_say_so() -> None:
    address, limiter = f"127.0.0.1:{free_port()}", Limiter()
    server = envoy_server(
        GatewaySettings(envoy=address, legacy_headers=True),
        limiter,
        DescriptorMapping(),
        shared=False,
        is_ready=limiter.is_ready,
    )
    assert server is not None
    async with server, grpc.aio.insecure_channel(address) as channel:
        response = await Envoy(channel, limiter).call(descriptors=[descriptor("alice")])
    headers = {header.key: header.value for header in response.response_headers_to_add}
    assert headers["x-ratelimit-limit"] == "100"


async def test_degraded_answer_is_ok_without_header_fields(envoy: Envoy) -> None:
    envoy.limiter.answers = (FAIL_OPEN[BROKER],)
    response = await envoy.call(descriptors=[descriptor("alice")])
    assert response.overall_code == response.statuses[0].code == OK
    assert not response.response_headers_to_add


async def test_answer_that_failed_closed_is_over_limit_with_retry_after(envoy: Envoy) -> None:
    envoy.limiter.answers = (ALLOWED, FAIL_CLOSED[BROKER])
    response = await envoy.call(descriptors=[descriptor("alice")] * 2)
    assert response.overall_code == response.statuses[1].code == OVER_LIMIT
    headers = {header.key: header.value for header in response.response_headers_to_add}
    assert headers == {"retry-after": "1"}


@pytest.fixture
async def closed() -> AsyncIterator[Envoy]:
    """A service whose domain `edge` has one rule that fails closed."""
    address, limiter = f"127.0.0.1:{free_port()}", Limiter()
    rules = [Rule("{key1}", on_unavailable="deny"), Rule("{key0}")]
    service = RateLimitService(limiter, DescriptorMapping({"edge": rules}), legacy_headers=False)
    async with (
        EnvoyServer(address, service, grace_s=1, shared=False),
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Envoy(channel, limiter)


async def test_descriptor_fails_closed_if_its_rule_says_so(closed: Envoy) -> None:
    await closed.call(descriptors=[descriptor("a", "b"), descriptor("c")])
    assert [check.client for check in closed.limiter.checks] == ["b", "c"]
    assert closed.limiter.fail_closed == [True, False]


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a bug"), InvalidInput("client_id", "refused by a worker", "correct it")]
)
async def test_call_that_fails_as_a_whole_is_over_limit_if_its_domain_fails_closed(
    closed: Envoy, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    closed.limiter.error = error
    response = await closed.call(descriptors=[descriptor("c")])
    assert response.overall_code == OVER_LIMIT
    assert {header.key: header.value for header in response.response_headers_to_add} == {"retry-after": "1"}
    assert closed.limiter.metrics.failed_closed[INTERNAL_ERROR] == 1
    assert str(error) in caplog.text
    other = RateLimitRequest(domain="other", descriptors=[descriptor("c")]).SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError):
        await closed.call_raw(other)


async def test_call_without_a_token_is_over_limit_if_its_domain_fails_closed() -> None:
    address, limiter = f"127.0.0.1:{free_port()}", Limiter()
    mapping = DescriptorMapping({"edge": [Rule("{key0}", on_unavailable="deny")]})
    service = RateLimitService(limiter, mapping, legacy_headers=False)
    access = access_control({}, check_needs_token=True)
    async with (
        EnvoyServer(address, service, grace_s=1, shared=False, access=access),
        grpc.aio.insecure_channel(address) as channel,
    ):
        envoy = Envoy(channel, limiter)
        assert (await envoy.call(descriptors=[descriptor("alice")])).overall_code == OVER_LIMIT
        other = RateLimitRequest(domain="other", descriptors=[descriptor("alice")])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await envoy.call_raw(other.SerializeToString())
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert limiter.checks == []


async def test_numbers_above_uint32_are_capped(envoy: Envoy) -> None:
    envoy.limiter.answers = (Answer(True, 10**15, 10**14, 60_000, 0, 7),)
    (status,) = (await envoy.call(descriptors=[descriptor("alice")])).statuses
    assert status.current_limit.requests_per_unit == status.limit_remaining == 2**32 - 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (RateLimitRequest(descriptors=[descriptor("alice")]), "domain: empty"),
        (RateLimitRequest(domain="edge"), "descriptors: 0 of them"),
        (RateLimitRequest(domain="edge", descriptors=[descriptor("alice"), {}]), "descriptors[1].entries"),
        (
            RateLimitRequest(domain="edge", descriptors=[descriptor("alice")] * 101),
            "101 of them; send 1 to 100",
        ),
        (
            RateLimitRequest(domain="edge", descriptors=[descriptor(*["a"] * 101)]),
            "101 of them; send 1 to 100",
        ),
    ],
)
async def test_invalid_request_is_an_invalid_argument(envoy: Envoy, request_: Any, message: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await envoy.call_raw(request_.SerializeToString())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in str(caught.value.details())
    assert envoy.limiter.checks == []


async def test_request_with_the_longest_header_fields_is_answered_and_a_larger_one_refused(
    envoy: Envoy,
) -> None:
    response = await envoy.call(descriptors=[descriptor("alice", "x" * 61_440)] * 16)
    assert len(response.statuses) == 16
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await envoy.call(descriptors=[descriptor("x" * 2**20)])
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(envoy.limiter.checks) == 16


async def test_value_that_is_not_utf8_is_checked_by_its_digest(envoy: Envoy) -> None:
    request = RateLimitRequest(domain="edge", descriptors=[descriptor("alice?")]).SerializeToString()
    response = await envoy.call_raw(request.replace(b"alice?", b"alice\xff"))
    assert response.overall_code == OK
    (check,) = envoy.limiter.checks
    assert check.client.startswith("sha256:")


@pytest.mark.parametrize("large", [False, True])
async def test_call_without_time_fails_open_or_closed_at_once(large: bool) -> None:
    address, limiter = f"127.0.0.1:{free_port()}", Limiter()
    mapping = DescriptorMapping({"login": [Rule("{key0}", on_unavailable="deny")]})
    service = RateLimitService(limiter, mapping, legacy_headers=False)
    each = [descriptor("alice", "x" * 5_000 if large else "x"), descriptor("bob")]
    async with (
        EnvoyServer(address, service, grace_s=1, shared=False, turns=LateTurns()),
        grpc.aio.insecure_channel(address) as channel,
    ):
        envoy = Envoy(channel, limiter)
        for domain, code in (("edge", OK), ("login", OVER_LIMIT)):
            request = RateLimitRequest(domain=domain, descriptors=each)
            response = await envoy.call_raw(request.SerializeToString())
            assert response.overall_code == code
            assert [status.code for status in response.statuses] == [code, code]
    assert len(limiter.checks) == (0 if large else 4)
    metrics = limiter.metrics
    assert metrics.uncounted == (4 if large else 0)
    if large:
        assert metrics.received == 4
        assert metrics.degraded[OVERLOAD] == metrics.failed_closed[OVERLOAD] == 2
    else:
        assert limiter.fail_closed == [False, False, True, True]


@pytest.mark.parametrize("each", [[], [descriptor("x" * 50)] * 101], ids=["none", "too many"])
async def test_invalid_call_without_time_is_an_invalid_argument(each: list[dict[str, Any]]) -> None:
    address, limiter = f"127.0.0.1:{free_port()}", Limiter()
    service = RateLimitService(limiter, DescriptorMapping(), legacy_headers=False)
    async with (
        EnvoyServer(address, service, grace_s=1, shared=False, turns=LateTurns()),
        grpc.aio.insecure_channel(address) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await Envoy(channel, limiter).call(descriptors=each)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not limiter.checks
    assert limiter.metrics.received == 0


async def test_bug_is_an_internal_error_and_is_logged(envoy: Envoy, caplog: pytest.LogCaptureFixture) -> None:
    envoy.limiter.error = ZeroDivisionError()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await envoy.call(descriptors=[descriptor("alice")])
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "ZeroDivisionError" in caplog.text


async def test_address_can_be_used_twice_only_if_both_servers_share_it() -> None:
    address, service = (
        f"127.0.0.1:{free_port()}",
        RateLimitService(Limiter(), DescriptorMapping(), legacy_headers=False),
    )
    async with EnvoyServer(address, service, grace_s=0, shared=False):
        with pytest.raises(CannotListen, match=f"STOPLOG_ENVOY={address} .* free port"):
            await EnvoyServer(address, service, grace_s=0, shared=False).__aenter__()
    async with (
        EnvoyServer(address, service, grace_s=0, shared=True),
        EnvoyServer(address, service, grace_s=0, shared=True),
    ):
        pass


async def test_with_tracing_each_call_continues_its_callers_trace() -> None:
    seen: list[tuple[int, bool]] = []

    class Seeing(Limiter):
        def _fail(self) -> None:
            context = trace.get_current_span().get_span_context()
            seen.append((context.trace_id, context.trace_flags.sampled))

    address, limiter = f"127.0.0.1:{free_port()}", Seeing()
    server = envoy_server(
        GatewaySettings(envoy=address, tracing=True),
        limiter,
        DescriptorMapping(),
        shared=False,
        is_ready=limiter.is_ready,
    )
    assert server is not None
    request = RateLimitRequest(domain="edge", descriptors=[descriptor("alice")]).SerializeToString()
    async with server, grpc.aio.insecure_channel(address) as channel:
        envoy = Envoy(channel, limiter)
        for sampled in ("01", "00"):
            traceparent = f"00-{9:032x}-00000000000000aa-{sampled}"
            await envoy.call_raw(request, ("traceparent", traceparent), ("tracestate", "a=b"))
        await envoy.call_raw(request, ("traceparent", "no trace"))
        await envoy.call_raw(request)
    assert seen == [(9, True), (9, False), (0, False), (0, False)]


async def test_health_service_answers_what_readyz_answers() -> None:
    ready = True

    async def is_ready() -> bool:
        return ready

    address = f"127.0.0.1:{free_port()}"
    service = RateLimitService(Limiter(), DescriptorMapping(), legacy_headers=False)
    async with (
        EnvoyServer(address, service, grace_s=0, shared=False, is_ready=is_ready),
        grpc.aio.insecure_channel(address) as channel,
    ):
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        assert await check(b"") == b"\x08\x01"  # status: SERVING
        assert await check(HealthCheckRequest(service=SERVICE).SerializeToString()) == b"\x08\x01"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(HealthCheckRequest(service="another").SerializeToString())
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        statuses = watch(b"")
        assert await statuses.read() == b"\x08\x01"
        ready = False
        assert await statuses.read() == b"\x08\x02"  # NOT_SERVING
        assert await check(b"") == b"\x08\x02"
        statuses.cancel()


async def test_connection_ends_at_its_maximum_age_without_a_failed_call() -> None:
    address, limiter = f"127.0.0.1:{free_port()}", Limiter()
    service = RateLimitService(limiter, DescriptorMapping(), legacy_headers=False)
    peers = set()

    async def is_ready() -> bool:
        return True

    class Seeing(EnvoyServer):
        async def _should_rate_limit(self, request: Any, context: Any) -> bytes:
            peers.add(context.peer())
            return await super()._should_rate_limit(request, context)

    async with (
        Seeing(address, service, grace_s=0, shared=False, max_age_s=1, is_ready=is_ready),
        grpc.aio.insecure_channel(address) as channel,
    ):
        envoy = Envoy(channel, limiter)
        async with asyncio.timeout(20):
            while len(peers) < 2:
                await envoy.call(descriptors=[descriptor("alice")])
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(("address", "code"), [("192.0.2.9", OVER_LIMIT), ("2001:db8::9", OK)])
@pytest.mark.parametrize("way", ["in time", "without time", "unread"])
async def test_address_that_is_listed_is_answered_without_charging_any_descriptor(
    address: str, code: int, way: str
) -> None:
    identity = Identity.of(Settings(blocked_addresses="192.0.2.0/24", exempt_addresses="2001:db8::/32"))
    mapping = DescriptorMapping({"edge": [Rule("{key0}", after_response="spent")]}, identity)
    limiter = Limiter()
    service = RateLimitService(limiter, mapping, legacy_headers=False)
    entries = [[("key0", "alice"), ("remote_address", address)], [("key0", "all"), ("spent", "7")]]
    call = RateLimitCall("edge", [AskedDescriptor(each, 2) for each in entries])
    if way == "unread":
        answers = service.map_in_overload("edge", entries, fails_closed=False)
    else:
        answers = [unwrap(one) for one in service.ask(call, has_time=way == "in time")]
    response = RateLimitResponse.FromString(service.encode(answers))
    assert response.overall_code == code
    assert [status.code for status in response.statuses] == [code, code]
    assert (limiter.checks, limiter.charges, limiter.metrics.received) == ([], [], 0)
    assert limiter.metrics.blocked + limiter.metrics.exempt == 1
    assert service.render(answers).status == (403 if code == OVER_LIMIT else 200)
