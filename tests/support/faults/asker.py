"""``python -m tests.support.faults.asker SEED URL...``: asks gateways until its standard input ends.

A process of its own: in the test's, whatever the test does meanwhile would be in the times measured. It
prints a line of JSON for each list of checks: gateway, when it was asked and answered (seconds, monotonic,
which all processes of a machine share), clients, answers.
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
CHECKS: Final = 16
"""Checks in one list: a partition is asked about 4 of them, 20 times a second by each gateway."""
INTERVAL_S: Final = 0.05
"""Between two lists to one gateway: 320 checks a second each, however long the answers take."""
CHANGE_S: Final = 0.5
"""Between two changes of a limit, or resets."""

LIMITS: Final = ("5/second", "20/10s", "60/minute", "10/second,100/minute", "1000/hour", "0/minute")


class Asker:
    """Asks *urls*.

    Args:
        urls: Of the gateways; one may die.
        seed: Of its choices.
    """

    def __init__(self, urls: list[str], seed: int) -> None:
        self._urls = urls
        self._random = random.Random(seed)
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Until standard input ends, and all that was asked is answered."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        async with (
            httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as http,
            asyncio.TaskGroup() as group,
        ):
            for url in self._urls:
                group.create_task(self._pace(http, url, group))
            group.create_task(self._change(http))
            asyncio.get_running_loop().add_reader(
                sys.stdin.fileno(), self._ended.set
            )  # nothing but its end comes
            await self._ended.wait()
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())

    async def _pace(self, http: httpx.AsyncClient, url: str, group: asyncio.TaskGroup) -> None:
        due = time.monotonic()
        while not self._ended.is_set():
            group.create_task(self._ask(http, url, self._random.choices(CLIENTS, k=CHECKS)))
            due += INTERVAL_S
            await asyncio.sleep(due - time.monotonic())

    async def _ask(self, http: httpx.AsyncClient, url: str, clients: list[str]) -> None:
        # As callers do: where a gateway was killed, another is asked.
        for asked in (url, *(other for other in self._urls if other != url)):
            at = time.monotonic()
            answers: list[Any] = [None] * len(clients)
            with suppress(httpx.TransportError):
                response = await http.post(
                    f"{asked}/v1/checks", json=[{"client_id": name} for name in clients]
                )
                answers = response.raise_for_status().json()
            line = msgspec.json.encode([asked, at, time.monotonic(), clients, answers])
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
            if answers[0] is not None:
                return

    async def _change(self, http: httpx.AsyncClient) -> None:
        """Change limits and reset counters, one after the other, here and there."""
        while not self._ended.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), CHANGE_S)
            url, name = self._random.choice(self._urls), self._random.choice(CLIENTS)
            with suppress(httpx.TransportError):
                if self._random.random() < 0.2:
                    await http.post(f"{url}/v1/clients/{name}/reset")
                else:
                    limits = self._random.choice(LIMITS).split(",")
                    await http.put(f"{url}/v1/limits/{name}", json={"limits": limits})


async def main() -> None:
    """Ask."""
    seed, *urls = sys.argv[1:]
    await Asker(urls, int(seed)).run()


if __name__ == "__main__":
    uvloop.run(main())
