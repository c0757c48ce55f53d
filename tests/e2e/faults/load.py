"""Load on all gateways, running throughout a fault: every answer is kept, with when it was asked."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

import httpx

from streams.contract.topics import partition_of

PARTITIONS: Final = 4
CLIENTS: Final = tuple(f"client-{number}" for number in range(200))
CHECKS: Final = 16
"""Checks in one list: a partition is asked about 4 of them, 20 times a second by each gateway."""
INTERVAL_S: Final = 0.05
"""Between two lists to one gateway: 320 checks a second each, however long the answers take."""
CHANGE_S: Final = 0.5
"""Between two changes of a limit, or resets."""

LIMITS: Final = ("5/second", "20/10s", "60/minute", "10/second,100/minute", "1000/hour", "0/minute")


class Asked(NamedTuple):
    """A check and what came of it: times in seconds, monotonic; no answer if the gateway was gone."""

    gateway: str
    client: str
    at: float
    until: float
    answer: dict[str, Any] | None

    @property
    def good(self) -> bool:
        """Whether the store answered."""
        return self.answer is not None and not self.answer["degraded"]


class Load:
    """A thread that asks *urls* until it is told to stop.

    Args:
        urls: Of the gateways; one may die.
        seed: Of its choices.
    """

    def __init__(self, urls: Sequence[str], seed: int) -> None:
        self.asked: list[Asked] = []
        self._urls = urls
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, when all that was asked is answered."""
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def well_for(self, seconds: float) -> bool:
        """Whether every partition was answered by the store, at every gateway that lives, of late."""
        since = time.monotonic() - seconds
        recent = [asked for asked in self.asked[-5_000:] if asked.at >= since and asked.answer is not None]
        seen = {partition_of(asked.client, PARTITIONS) for asked in recent}
        return len(seen) == PARTITIONS and all(asked.good for asked in recent)

    def _run(self) -> None:
        try:
            asyncio.run(self._ask_all())
        except BaseException as exc:  # noqa: BLE001 - raised again where it is waited for
            self._failure = exc

    async def _ask_all(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        async with (
            httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as http,
            asyncio.TaskGroup() as group,
        ):
            for url in self._urls:
                group.create_task(self._pace(http, url, group))
            group.create_task(self._change(http))

    async def _pace(self, http: httpx.AsyncClient, url: str, group: asyncio.TaskGroup) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            group.create_task(self._ask(http, url, self._random.choices(CLIENTS, k=CHECKS)))
            due += INTERVAL_S
            await asyncio.sleep(due - time.monotonic())

    async def _ask(self, http: httpx.AsyncClient, url: str, clients: list[str]) -> None:
        at = time.monotonic()
        answers: list[Any] = [None] * len(clients)
        with suppress(httpx.TransportError):  # a gateway that was killed
            response = await http.post(f"{url}/v1/checks", json=[{"client_id": name} for name in clients])
            answers = response.raise_for_status().json()
        until = time.monotonic()
        self.asked.extend(
            Asked(url, name, at, until, answer) for name, answer in zip(clients, answers, strict=True)
        )

    async def _change(self, http: httpx.AsyncClient) -> None:
        """Change limits and reset counters, one after the other, here and there."""
        while not self._stop.is_set():
            await asyncio.sleep(CHANGE_S)
            url, name = self._random.choice(self._urls), self._random.choice(CLIENTS)
            with suppress(httpx.TransportError):
                if self._random.random() < 0.2:
                    await http.post(f"{url}/v1/clients/{name}/reset")
                else:
                    limits = self._random.choice(LIMITS).split(",")
                    await http.put(f"{url}/v1/limits/{name}", json={"limits": limits})


@contextmanager
def running_load(urls: Sequence[str], seed: int = 1) -> Iterator[Load]:
    """Load until the block ends."""
    load = Load(urls, seed)
    load.start()
    try:
        yield load
    finally:
        load.stop()


def late_s(asked: Sequence[Asked], since: float, until: float = float("inf")) -> dict[int, float]:
    """Seconds for which each partition was let through, of checks asked from *since* to *until*.

    A spell of a gateway is from its first check that was let through until the store next answered one that
    it was asked later. Spells are added up, and the gateway that has most counts.
    """
    by_place: dict[tuple[int, str], list[Asked]] = defaultdict(list)
    for one in sorted(asked, key=lambda one: one.at):
        if since <= one.at <= until and one.answer is not None:
            by_place[partition_of(one.client, PARTITIONS), one.gateway].append(one)
    late = dict.fromkeys(range(PARTITIONS), 0.0)
    for (partition, _), of_it in by_place.items():
        late[partition] = max(late[partition], _spells(of_it))
    return late


def _spells(asked: Sequence[Asked]) -> float:
    total, began = 0.0, None
    last = 0.0
    for one in asked:
        last = one.until
        if not one.good:
            began = one.at if began is None else began
        elif began is not None:
            total += one.at - began
            began = None
    return total + (last - began if began is not None else 0.0)
