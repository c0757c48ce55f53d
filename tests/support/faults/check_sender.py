"""``python -m tests.support.faults.check_sender SEED URL...``: send checks until standard input ends.

It is a process of its own, so that other work of the test does not distort the latencies. For each list of
checks it prints one line of JSON: gateway, time of the request, time of the response, clients, answers.
Times are seconds of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import suppress
from typing import Any, Final

import httpx
import msgspec
import uvloop

CLIENTS: Final = tuple(f"client-{number}" for number in range(200))
HOT_CLIENTS: Final = tuple(f"hot-{number}" for number in (0, 1, 5, 6, 8, 10, 20, 22))
"""Clients that get leases, two of each partition. Each gateway checks each of them ten times a second."""
PLANS: Final[tuple[dict[str, str], ...]] = ({}, {"plan": "trial"})
"""Plans of the other clients. A client that is seen under two plans gets no lease. Their limits are equal."""
CHECKS: Final = 16
"""Checks in one list: each gateway sends about 4 of them to each partition, 20 times a second."""
HOT_CHECKS: Final = 4
"""Those of hot clients."""
INTERVAL_S: Final = 0.05
"""Seconds between two lists to one gateway, however long the responses take: 320 checks a second."""
CHANGE_S: Final = 0.5
"""Seconds between two changes of limits, or resets."""

LOST: Final = (httpx.TransportError, AttributeError)
"""Errors of a connection that is lost. anyio raises the second one if that happens while it is being made."""

HOT_LIMITS: Final = ("1000/minute", "2000/minute", "4000/minute", "8000/minute")
"""Limits of hot clients. They have the same window, because no lease is granted while another one is kept."""
LIMITS: Final = ("5/second", "20/10s", "60/minute", "10/second,100/minute", "1000/hour", "0/minute")


class CheckSender:
    """A sender of checks, changes of limits, and resets.

    Args:
        urls: URLs of the gateways; one may die.
        seed: Seed of the random choices.
    """

    def __init__(self, urls: list[str], seed: int) -> None:
        self._urls = urls
        self._random = random.Random(seed)
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Raise the limits of hot clients, send until standard input ends, then wait for all responses."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        async with (
            httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as http,
            asyncio.TaskGroup() as group,
        ):
            await asyncio.gather(*(self._raise_limits(http, name) for name in HOT_CLIENTS))
            for url in self._urls:
                group.create_task(self._pace(http, url, group))
            group.create_task(self._change(http))
            # Standard input has no data: it becomes readable when it ends.
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._ended.set)
            await self._ended.wait()
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())

    async def _pace(self, http: httpx.AsyncClient, url: str, group: asyncio.TaskGroup) -> None:
        due = time.monotonic()
        while not self._ended.is_set():
            hot = self._random.choices(HOT_CLIENTS, k=HOT_CHECKS)
            others = self._random.choices(CLIENTS, k=CHECKS - HOT_CHECKS)
            group.create_task(self._send(http, url, [*hot, *others]))
            due += INTERVAL_S
            await asyncio.sleep(due - time.monotonic())

    async def _send(self, http: httpx.AsyncClient, url: str, clients: list[str]) -> None:
        """Send a list of checks to the gateway at *url*, or to another one if that was killed."""
        checks = [{"client_id": name} | self._plan_of(name) for name in clients]
        for gateway in (url, *(other for other in self._urls if other != url)):
            sent_at = time.monotonic()
            answers: list[Any] = [None] * len(clients)
            with suppress(*LOST):
                response = await http.post(f"{gateway}/v1/checks", json=checks)
                answers = response.raise_for_status().json()
            line = msgspec.json.encode([gateway, sent_at, time.monotonic(), clients, answers])
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
            if answers[0] is not None:
                return

    def _plan_of(self, client: str) -> dict[str, str]:
        return {} if client in HOT_CLIENTS else self._random.choice(PLANS)

    async def _raise_limits(self, http: httpx.AsyncClient, client: str) -> None:
        """Begin with a high limit, so that a hot client soon has leases for all of its checks."""
        with suppress(*LOST):
            await http.put(f"{self._urls[0]}/v1/limits/{client}", json={"limits": [HOT_LIMITS[3]]})

    async def _change(self, http: httpx.AsyncClient) -> None:
        """Change the limits or reset the counters of random clients, at random gateways.

        Hot clients are not reset, so that their windows can be checked.
        """
        while not self._ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), CHANGE_S)
            url, hot = self._random.choice(self._urls), self._random.random() < 0.1
            name = self._random.choice(HOT_CLIENTS if hot else CLIENTS)
            with suppress(*LOST):
                if hot:
                    limits = self._random.choice(HOT_LIMITS).split(",")
                    await http.put(f"{url}/v1/limits/{name}", json={"limits": limits})
                elif self._random.random() < 0.2:
                    await http.post(f"{url}/v1/clients/{name}/reset")
                else:
                    limits = self._random.choice(LIMITS).split(",")
                    await http.put(f"{url}/v1/limits/{name}", json={"limits": limits})


async def main() -> None:
    """Send to the gateways named on the command line."""
    seed, *urls = sys.argv[1:]
    await CheckSender(urls, int(seed)).run()


if __name__ == "__main__":
    uvloop.run(main())
