"""An HTTP client whose requests wait for a limit. The limiter is replaced at its one call."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from stoplog import InvalidInput, Limiter, WaitTimeout
from stoplog.integrations.httpx_transport import RateLimitTransport
from tests.support.fake_limiter import ALLOWED, FakeLimiter


class WaitingLimiter(FakeLimiter):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Any] = []
        self.permit, self.asked = asyncio.Event(), asyncio.Event()

    async def wait(self, *args: Any, **options: Any) -> Any:
        self.waits.append((*args, options))
        self.asked.set()
        self._fail()
        await self.permit.wait()
        return ALLOWED


def transport(limiter: Limiter, sent: list[httpx.Request], **options: Any) -> RateLimitTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, text="hello")

    options = {"limits": "10/second", "transport": httpx.MockTransport(answer), **options}
    return RateLimitTransport(limiter=limiter, **options)


async def test_request_is_sent_once_the_limit_of_its_host_allows_it() -> None:
    limiter, sent = WaitingLimiter(), list[httpx.Request]()
    async with httpx.AsyncClient(transport=transport(limiter, sent, timeout=5)) as client:
        asking = asyncio.create_task(client.get("https://api.example/v1"))
        await limiter.asked.wait()
        assert sent == []
        limiter.permit.set()
        assert (await asking).text == "hello"
    assert limiter.waits == [("api.example", 1, 5, {"plan": "=10/second", "resource": "outbound"})]


async def test_request_without_a_client_does_not_wait_and_one_in_vain_is_not_sent() -> None:
    limiter, sent = WaitingLimiter(), list[httpx.Request]()
    key = lambda request: request.headers.get("x-account")  # noqa: E731
    async with httpx.AsyncClient(transport=transport(limiter, sent, key=key)) as client:
        await client.get("https://api.example/")
        limiter.error = WaitTimeout("alice", 1)
        with pytest.raises(WaitTimeout):
            await client.get("https://api.example/", headers={"x-account": "alice"})
    assert len(sent) == 1


@pytest.mark.parametrize("wrong", [{"limits": "10"}, {"timeout": -1}, {"resource": ""}])
def test_invalid_argument_is_named_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        transport(Limiter("kafka:9092"), [], **wrong)
