"""Find out whether a gateway gets its checks answered, for the end of a start."""

from __future__ import annotations

from itertools import count
from typing import Any

import httpx

from stoplog.client.cluster_status import OK, UNDER_REPLICATED
from stoplog.partitioning import partition_of


def checks_of_all(partitions: int) -> list[dict[str, Any]]:
    """Return one check for each partition, which spends nothing."""
    found: dict[int, str] = {}
    numbers = count()
    while len(found) < partitions:
        client = f"stoplog-up-{next(numbers)}"
        found.setdefault(partition_of(client, partitions), client)
    return [{"client_id": client, "cost": 0} for client in found.values()]


def count_answered(client: httpx.Client, url: str, checks: list[dict[str, Any]]) -> int:
    """Return how many of *checks* the gateway at *url* gets answered by workers.

    No check is sent before the gateway knows of workers: missed deadlines would put it into degraded mode.
    """
    try:
        status = client.get(f"{url}/v1/status").raise_for_status().json()
        if status["store"] not in (OK, UNDER_REPLICATED):
            return 0
        answers = client.post(f"{url}/v1/checks", json=checks).raise_for_status().json()
    except httpx.HTTPError:
        return 0
    return sum(not answer["degraded"] for answer in answers)
