"""Reservations: on a real broker, with real gateways and a real worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI, HTTPException
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse

from stoplog import BlockingLimiter, Check, Denied, Limiter, RateLimit, RateLimitMiddleware
from tests.support.broker import fresh_broker
from tests.support.system import Gateway, System, eventually, running_system


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Run one system for all tests. Each test has its own client, and the last one stops the worker."""
    folder = tmp_path_factory.mktemp("system")
    # A busy machine does not miss this deadline, so nothing fails open while the worker lives.
    settings = {"deadline_ms": 20_000}
    with fresh_broker() as broker, running_system(broker, folder, gateways=2, **settings) as running:
        running.wait_reservations()
        yield running


def reserve(gateway: Gateway, client: str, cost: int, **fields: Any) -> dict[str, Any]:
    response = gateway.http.post("/v1/reservations", json={"client_id": client, "cost": cost, **fields})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def settle(gateway: Gateway, id_: str, used: int) -> dict[str, Any]:
    response = gateway.http.post(f"/v1/reservations/{id_}/settle", json={"used": used})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def give_back(gateway: Gateway, id_: str) -> dict[str, Any]:
    response = gateway.http.delete(f"/v1/reservations/{id_}")
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refund(gateway: Gateway, client: str, cost: int, **fields: str) -> tuple[str, int | None, bool]:
    """Make a refund; return its state, the units returned, and whether it is a repetition."""
    response = gateway.http.post("/v1/refunds", json={"client_id": client, "cost": cost, **fields})
    assert response.status_code == 200, response.text
    done: dict[str, Any] = response.json()
    return done["state"], done["units"], done["repeated"]


def left(gateway: Gateway, client: str) -> int:
    """Return what remains of the client's limit."""
    remaining: int = gateway.check(client, cost=0)["remaining"]
    return remaining


def test_reservation_holds_until_another_gateway_settles_it(system: System) -> None:
    here, there = system.gateways
    here.set_limits("team", "10000/hour")
    answer = reserve(here, "team", 4_000, ttl_ms=600_000)
    assert (answer["allowed"], answer["held"], answer["remaining"]) == (True, 4_000, 6_000)
    assert 0 < answer["ttl_ms"] <= 600_000
    assert left(there, "team") == 6_000
    assert not there.check("team", cost=6_001)["allowed"]
    id_ = answer["id"]
    expected = {"id": id_, "state": "settled", "used": 2_913, "repeated": False, "reason": None}
    assert settle(there, id_, 2_913) == expected
    assert left(here, "team") == 10_000 - 2_913
    for late in (settle(here, id_, 5), give_back(there, id_)):
        assert late == {**expected, "repeated": True}
    assert left(here, "team") == 10_000 - 2_913


def test_returned_reservation_charges_nothing(system: System) -> None:
    here, there = system.gateways
    answer = reserve(here, "undo", 60, resource="downloads")
    assert reserve(there, "undo", 41, resource="downloads")["allowed"] is False
    returned = give_back(here, answer["id"])
    assert (returned["state"], returned["used"], returned["repeated"]) == ("settled", 0, False)
    assert reserve(there, "undo", 100, resource="downloads")["allowed"] is True


def test_denied_reservation_has_no_id_and_says_when_to_try_again(system: System) -> None:
    here, _ = system.gateways
    reserve(here, "full", 100, ttl_ms=30_000)
    answer = reserve(here, "full", 1)
    assert (answer["allowed"], answer["id"], answer["held"]) == (False, None, 0)
    assert answer["retry_after_ms"] > 60_000, "the reservation is charged at its end"
    assert reserve(here, "full", 101)["retry_after_ms"] is None


def test_reservation_that_is_not_settled_is_charged_at_its_end(system: System) -> None:
    here, there = system.gateways
    here.set_limits("late", "100/hour")
    id_ = reserve(here, "late", 70, ttl_ms=1)["id"]
    eventually("the reservation is over", lambda: settle(there, id_, 3)["state"] == "over")
    assert left(here, "late") == 30


def test_unlimited_client_holds_nothing(system: System) -> None:
    here, _ = system.gateways
    assert here.http.put("/v1/limits/free", json={"limits": "unlimited"}).status_code == 200
    answer = reserve(here, "free", 1_000_000)
    assert (answer["allowed"], answer["limit"], answer["held"]) == (True, None, 0)
    assert settle(here, answer["id"], 5)["state"] == "unlimited"


def test_requests_in_flight_are_bounded_over_all_gateways(system: System) -> None:
    here, there = system.gateways
    stored = here.set_limits("crawler", "2 in flight", "100/minute")
    assert stored["limits"] == ["100/minute", "2 in flight"]
    first, second = reserve(here, "crawler", 1), reserve(there, "crawler", 0)
    assert (first["allowed"], second["allowed"]) == (True, True)
    denied = reserve(here, "crawler", 0)
    assert (denied["allowed"], denied["id"], denied["limit"]) == (False, None, 100)
    assert denied["detail"].startswith("2 reservations are open")
    assert 0 < denied["retry_after_ms"] <= 60_000
    assert here.check("crawler")["allowed"], "a check is not in flight"
    usage = here.http.get("/v1/clients/crawler/usage").json()
    used = {window["limit"]: (window["used"], window["held"]) for window in usage["windows"]}
    assert used == {"100/minute": (2, 1), "2 in flight": (2, 2)}
    reservations, leases = usage["holds"]["reservations"], usage["holds"]["leases"]
    assert (reservations["open"], reservations["units"]) == (2, 1)
    assert 0 < reservations["next_end_ms"] <= 60_000
    assert leases == {"open": 0, "units": 0, "next_end_ms": None}
    give_back(here, second["id"])
    assert reserve(there, "crawler", 0)["allowed"]


def test_gateways_own_lease_does_not_deny_a_reservation(system: System) -> None:
    here, there = system.gateways
    here.set_limits("hot", "1000/hour")
    hits, used = here.metric("stoplog_lease_hits_total"), 0

    def has_lease() -> bool:
        nonlocal used
        for _ in range(10):
            used += here.check("hot")["allowed"]
        return here.metric("stoplog_lease_hits_total") > hits

    def shows_lease() -> bool:
        """Return whether the lookup shows the lease, which ends after some seconds without checks."""
        has_lease()
        leases = there.http.get("/v1/clients/hot/usage").json()["holds"]["leases"]
        return bool(leases["open"] and leases["units"] and 0 < leases["next_end_ms"] <= 10_000)

    eventually("hot has a lease", has_lease)
    eventually("its usage shows the lease", shows_lease)
    answer = reserve(here, "hot", 1_000 - used)
    assert answer["allowed"], answer
    assert not here.check("hot")["allowed"]
    give_back(here, answer["id"])


async def test_repeated_refund_through_another_process_changes_nothing(system: System) -> None:
    here, there = system.gateways

    here.check("shop", cost=40)
    assert refund(there, "shop", 5, refund_id="order 7") == ("not_refundable", None, False)
    here.set_limits("shop", "100/hour", "refundable")
    assert refund(there, "shop", 5, refund_id="order 7") == ("refunded", 5, False)
    assert left(here, "shop") == 65
    assert refund(here, "shop", 5, refund_id="order 7") == ("refunded", 5, True)
    async with Limiter(system.bootstrap, deadline_ms=20_000) as limiter:
        again = await limiter.refund("shop", 5, refund_id="order 7")
        assert (again.state, again.units, again.repeated) == ("refunded", 5, True)
        assert (await limiter.refund("shop", 99)).units == 35
    with BlockingLimiter(system.bootstrap, deadline_ms=20_000) as blocking:
        assert blocking.refund("shop", refund_id="order 7").repeated
    assert left(here, "shop") == 100
    here.http.put("/v1/limits/free", json={"limits": "unlimited"}).raise_for_status()
    assert refund(here, "free", 5) == ("unlimited", None, False)


async def test_block_of_the_sdk_charges_what_it_used(system: System) -> None:
    here, _ = system.gateways
    async with Limiter(system.bootstrap, deadline_ms=20_000) as limiter:
        async with limiter.reserve("sdk", 80) as held:
            assert left(here, "sdk") == 20
            with pytest.raises(Denied, match="try again in"):
                async with limiter.reserve("sdk", 21):
                    pytest.fail("a denied block runs")
            held.used = 13
        assert held.settled is not None
        assert held.settled.used == 13
        with pytest.raises(ZeroDivisionError):
            async with limiter.reserve("sdk", 80):
                raise ZeroDivisionError
        assert left(here, "sdk") == 87
        with pytest.raises(ZeroDivisionError):
            async with limiter.reserve("sdk", 7, on_error="charge"):
                raise ZeroDivisionError
        assert left(here, "sdk") == 80


async def test_reservation_of_an_overloaded_process_is_granted_and_settled_later(system: System) -> None:
    here, _ = system.gateways
    async with Limiter(system.bootstrap, deadline_ms=20_000) as limiter:
        await limiter.settle((await limiter.open_reservation("busy", 0)).id or "", 0)
        answers = [limiter.open_reservation_at_once(Check("busy", 30), 600_000) for _ in range(2)]
        for answer in answers:
            assert (answer.allowed, answer.degraded, answer.reason) == (True, True, "overload")
        first, second = (str(answer.id) for answer in answers)
        assert (await limiter.settle(first, 12)).state == "settled", "it was granted"
        assert left(here, "busy") == 100 - 12 - 30
        assert limiter.settle_at_once(second, 5).reason == "overload"
        settled = await limiter.settle(second, 0)
        assert (settled.state, settled.used, settled.repeated) == ("settled", 5, True)
        assert left(here, "busy") == 100 - 12 - 5


def test_block_of_the_blocking_sdk_charges_what_it_used(system: System) -> None:
    here, _ = system.gateways
    with BlockingLimiter(system.bootstrap, deadline_ms=20_000) as limiter:
        with limiter.reserve("threads", 80) as held:
            assert left(here, "threads") == 20
            held.used = 13
        with pytest.raises(ZeroDivisionError), limiter.reserve("threads", 80):
            raise ZeroDivisionError
        with limiter.reserve("threads", 7):
            pass
        assert left(here, "threads") == 80
        with pytest.raises(Denied), limiter.reserve("threads", 81):
            pytest.fail("a denied block runs")


def charge(status: int, headers: Headers) -> int:
    return int(headers.get("x-cost", 0 if status >= 500 else 1))


def outcome_app(limiter: Limiter, close: asyncio.Event) -> FastAPI:
    """Return an application whose responses decide what they cost; a download lasts until *close* is set."""
    app = FastAPI()
    options: dict[str, Any] = {"cost": 40, "charge": charge}
    app.add_middleware(
        RateLimitMiddleware, limiter=limiter, identify=lambda c: c.headers.get("x-api-key"), **options
    )
    wrong = RateLimit(limiter, lambda c: c.query_params.get("user"), charge=lambda s, _: int(s == 401))

    @app.get("/status/{status}")
    async def status(status: int) -> Response:
        return Response(status_code=status)

    @app.get("/download")
    async def download() -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            await close.wait()
            yield b"last"

        return StreamingResponse(parts(), headers={"X-Cost": "7"})

    @app.get("/login", dependencies=[Depends(wrong)])
    async def login(password: str) -> str:
        if password != "secret":
            raise HTTPException(401)
        return "welcome"

    return app


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Serve *app* with uvicorn in this process."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    with closing(server.config.bind_socket()) as sock:
        sock.listen()  # a request waits until the server has started
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:
                yield http
        finally:
            server.should_exit = True
            await serving


async def test_web_application_charges_by_its_responses(system: System) -> None:
    here, _ = system.gateways
    here.set_limits("app", "100/hour")
    here.set_limits("eve", "2/hour")
    close = asyncio.Event()
    key = {"X-API-Key": "app"}

    async def now_left(client: str = "app") -> int:
        return await asyncio.to_thread(left, here, client)

    async def becomes(expected: int) -> None:
        await asyncio.to_thread(
            eventually, f"{expected} are left", lambda: left(here, "app") == expected, on_failure=system.logs
        )

    async with served(outcome_app(Limiter(system.bootstrap, deadline_ms=20_000), close)) as http:
        for status in (200, 404, 503):
            assert (await http.get(f"/status/{status}", headers=key)).status_code == status
        await becomes(98)
        async with http.stream("GET", "/download", headers=key) as first:
            parts = first.aiter_raw()
            assert await anext(parts) == b"first"
            assert await now_left() == 58
            async with http.stream("GET", "/download", headers=key) as second:
                others = second.aiter_raw()  # the end of an iterator would end the download
                assert await anext(others) == b"first"
                assert await now_left() == 18
                assert (await http.get("/status/200", headers=key)).status_code == 429
            await becomes(51)  # the caller has left the second download
            close.set()
            assert [part async for part in parts] == [b"last"]
        await becomes(84)

        params = [{"user": "eve", "password": word} for word in ("secret", "1", "secret", "2", "secret")]
        responses = [await http.get("/login", params=one) for one in params]
        assert [response.status_code for response in responses] == [200, 401, 200, 401, 429]


def test_calls_without_a_worker_are_answered_and_can_be_repeated_later(system: System) -> None:
    [worker], quick = system.workers, system.add_gateway(deadline_ms=400)
    system.wait_ready()
    system.wait_reservations()
    system.gateways.remove(quick)
    quick.set_limits("dark", "100/hour", "refundable")
    quick.check("dark", cost=20)
    before = reserve(quick, "dark", 10)
    assert refund(quick, "dark", 3, refund_id="before") == ("refunded", 3, False)
    worker.kill()
    try:
        began = time.monotonic()
        opened, closed = reserve(quick, "dark", 20), reserve(quick, "dark", 30, on_unavailable="deny")
        assert time.monotonic() - began < 10
        assert (opened["allowed"], opened["degraded"], opened["held"]) == (True, True, 0)
        assert (closed["allowed"], closed["degraded"], closed["retry_after_ms"]) == (False, True, 1_000)
        unconfirmed = settle(quick, before["id"], 7)
        assert unconfirmed["state"] == "unconfirmed"
        assert unconfirmed["reason"] in ("deadline", "breaker_open")
        assert refund(quick, "dark", 5, refund_id="meanwhile") == ("unconfirmed", None, False)
    finally:
        worker.start()
    system.wait_ready()

    eventually("the worker answers again", lambda: settle(quick, before["id"], 0)["reason"] is None)
    assert settle(quick, before["id"], 0) == {
        "id": before["id"], "state": "settled", "used": 7, "repeated": True, "reason": None
    }  # fmt: skip
    assert settle(quick, opened["id"], 15)["state"] == "settled", "the log granted it later"
    assert give_back(quick, closed["id"])["state"] == "settled"
    assert refund(quick, "dark", 3, refund_id="before") == ("refunded", 3, True)
    assert refund(quick, "dark", 5, refund_id="meanwhile") == ("refunded", 5, True)
    assert left(quick, "dark") == 100 - 20 + 3 + 5 - 7 - 15
    assert quick.stop() == 0
