"""Functions whose calls are limited. The limiter is real; its store is a fake that denies odd costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from stoplog import BlockingLimiter, InvalidInput, Limiter, LimitExceeded, limit
from stoplog.client.engine import wall_ms
from stoplog.client.fail_open import BROKER
from stoplog.errors import InvalidLimit, UpgradeFirst
from stoplog.policy import usable_id
from stoplog.wire.checks import Check
from stoplog.wire.heartbeats import Heartbeat, StampedHeartbeat
from tests.support.fake_kafka import Kafka


@pytest.fixture(autouse=True)
def workers(kafka: type[Kafka], monkeypatch: pytest.MonkeyPatch) -> list[Heartbeat]:
    """Return the heartbeats that a limiter hears at its start: of a gateway and of a worker."""
    found = [Heartbeat("old gateway", "gateway", "0", "here", 0)]
    found.append(Heartbeat("worker-1", "worker", "0", "here", 0, stated_plans=True))
    start = kafka.start

    def start_and_hear(self: Kafka) -> None:
        start(self)
        self.loop.call_soon(self.listener.on_heartbeats, [StampedHeartbeat(one, wall_ms()) for one in found])

    monkeypatch.setattr(kafka, "start", start_and_hear)
    return found


@pytest.fixture
def limiter() -> Limiter:
    return Limiter("kafka:9092", deadline_ms=60_000)


@pytest.fixture
def blocking() -> Iterator[BlockingLimiter]:
    limiter = BlockingLimiter("kafka:9092", deadline_ms=60_000)
    yield limiter
    limiter.stop()


def checks(limiter: Limiter) -> list[Check]:
    transport: Any = limiter._engine.transport
    found: list[Check] = transport.checks
    return found


async def test_async_call_is_charged_to_its_client_under_the_name_of_the_function(limiter: Limiter) -> None:
    @limit(["5/minute", "100/1d"], limiter=limiter, key=lambda user, **_: user, cost=2)
    async def send(user: str, *, text: str) -> str:
        """Send."""
        return text

    assert await send("alice", text="hello") == "hello"
    name = f"{send.__module__}.{send.__qualname__}"
    assert checks(limiter) == [Check("alice", 2, "=100/day,5/minute", name)]
    assert send.__doc__ == "Send."


def test_denied_call_raises_and_does_not_run(blocking: BlockingLimiter) -> None:
    @limit("5/minute", limiter=blocking, key="all", cost=3, resource="mail")
    def send() -> None:
        raise AssertionError

    with pytest.raises(
        LimitExceeded, match="mail was called too often: limit 100; try again in 9 ms"
    ) as caught:
        send()
    assert caught.value.answer.retry_after_ms == 9
    assert checks(blocking._limiter) == [Check("all", 3, "=5/minute", "mail")]


def test_call_without_a_client_is_not_limited_and_an_invalid_id_is_replaced(
    blocking: BlockingLimiter,
) -> None:
    @limit("5/minute", limiter=blocking, key=lambda user: user, cost=2, resource="mail")
    def send(user: str | None) -> str:
        return "sent"

    assert send(None) == send("x" * 300) == "sent"
    assert [check.client for check in checks(blocking._limiter)] == [usable_id("x" * 300)]


async def test_worker_of_an_older_release_is_named(limiter: Limiter, workers: list[Heartbeat]) -> None:
    workers += [Heartbeat(name, "worker", "0", "here", 0) for name in ("worker-3", "worker-2")]

    @limit("5/minute", limiter=limiter, key="all")
    async def send() -> None:
        raise AssertionError

    plan = "=5/minute"
    calls = (
        limiter.check("alice", plan=plan),
        limiter.check_many([Check("alice", plan=plan)]),
        limiter.open_reservation("alice", plan=plan),
        limiter.wait("alice", plan=plan),
    )
    for call in (send(), *calls):
        with pytest.raises(UpgradeFirst, match="upgrade worker worker-2 and worker worker-3 first"):
            await call
    assert checks(limiter) == []


async def test_call_that_the_store_does_not_decide_fails_open_or_closed(limiter: Limiter) -> None:
    @limit("5/minute", limiter=limiter, key="all", cost=2)
    async def open_() -> str:
        return "sent"

    @limit("5/minute", limiter=limiter, key="all", on_unavailable="deny", cost=2)
    async def closed() -> None:
        raise AssertionError

    await open_()
    limiter._engine.on_broker_down("gone")
    assert await open_() == "sent"
    with pytest.raises(LimitExceeded, match=f"the store did not decide it \\({BROKER}\\)"):
        await closed()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"limits": "5/minuet"}, InvalidLimit, "limits: '5/minuet' is not a limit"),
        ({"limits": []}, InvalidLimit, "limits: an empty list"),
        ({"limits": "unlimited"}, InvalidLimit, "no limit with a window"),
        ({"limits": "2 in flight"}, InvalidLimit, "no limit with a window"),
        ({"cost": -1}, InvalidInput, "cost: "),
        ({"on_unavailable": "maybe"}, InvalidInput, "on_unavailable: "),
        ({"key": 7}, InvalidInput, "key: "),
    ],
)
def test_invalid_argument_raises_when_decorating(
    limiter: Limiter, arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        limit(**{"limits": "5/minute", "limiter": limiter, "key": "all", **arguments})


def test_limiter_must_suit_the_function(limiter: Limiter, blocking: BlockingLimiter) -> None:
    async def async_send() -> None: ...
    def send() -> None: ...

    with pytest.raises(TypeError, match="is async: give a Limiter"):
        limit("5/minute", limiter=blocking, key="all")(async_send)
    with pytest.raises(TypeError, match="is not async: give a BlockingLimiter"):
        limit("5/minute", limiter=limiter, key="all")(send)
