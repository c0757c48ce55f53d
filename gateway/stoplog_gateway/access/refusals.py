"""Refused requests: counted, logged without repetition, and slowed down.

Only the response to a refused request waits. An accepted request never does, not even from an address whose
other requests are refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address, ip_address
from time import monotonic
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from stoplog.log_throttle import LogThrottle

log: Final = logging.getLogger(__name__)

NO_TOKEN: Final = "no_token"
UNKNOWN_TOKEN: Final = "unknown_token"
MISSING_SCOPE: Final = "missing_scope"
FOREIGN: Final = "foreign"
NO_TOKENS_FILE: Final = "no_tokens_file"
REASONS: Final = {
    NO_TOKEN: "carry no token",
    UNKNOWN_TOKEN: "carry an unknown token",
    MISSING_SCOPE: "carry a token without the scope",
    FOREIGN: "come from elsewhere, without a token",
    NO_TOKENS_FILE: "need a token, and STOPLOG_TOKENS_FILE is not set",
}
"""Why requests are refused: values of the label ``reason``, with their meaning."""

FIRST_DELAY_S: Final = 0.1
MAX_DELAY_S: Final = 2.0
MAX_WAITING: Final = 1_000
"""Refused responses that wait at the same time. Further ones are sent at once, without a delay."""

_FORGET_S: Final = 60.0
"""Seconds without a refusal after which an address starts with the first delay again."""

_MAX_ADDRESSES: Final = 10_000
"""Addresses that are remembered. The one refused longest ago is forgotten first."""

_LOG_PAUSE_S: Final = 60.0

SCOPES: Final = ("check", "read", "admin", "open")
"""Values of the label ``scope``: what the refused request needed."""


class _Delay(NamedTuple):
    seconds: float
    at: float


class Refusals(Collector):
    """The refusals of one process.

    Args:
        first_delay_s: Seconds that the first refused response of an address waits. 0: none waits.
        clock: Returns monotonic seconds.
    """

    def __init__(self, first_delay_s: float = FIRST_DELAY_S, clock: Callable[[], float] = monotonic) -> None:
        self._first_delay_s = first_delay_s
        self._clock = clock
        self._counts = dict.fromkeys(((reason, scope) for reason in REASONS for scope in SCOPES), 0)
        self._delays: OrderedDict[str, _Delay] = OrderedDict()
        self._waiting = 0
        self._throttle = LogThrottle(_LOG_PAUSE_S, clock)

    async def add(self, reason: str, scope: str, address: str | None, name: str | None = None) -> None:
        """Count and log a refusal as :meth:`count` does, and return when its response may be sent."""
        self.count(reason, scope, address, name)
        seconds = self.next_delay(address or "")
        if seconds and self._waiting < MAX_WAITING:
            self._waiting += 1
            try:
                await asyncio.sleep(seconds)
            finally:
                self._waiting -= 1

    def count(self, reason: str, scope: str, address: str | None, name: str | None = None) -> None:
        """Count and log a refusal.

        Args:
            reason: One of :data:`REASONS`.
            scope: One of :data:`SCOPES`.
            address: IP address of the caller, if it is known.
            name: Name of the caller's token, if it is known.
        """
        self._counts[reason, scope] += 1
        if (end := self._throttle.admit(f"{reason} {scope}")) is not None:
            log.warning(
                "refused requests (scope %s) that %s; the latest came from %s%s%s",
                scope,
                REASONS[reason],
                address or "an unknown address",
                f" with token {name}" if name else "",
                end,
            )

    def next_delay(self, address: str) -> float:
        """Record one more refusal of *address*, and return the seconds that its response waits."""
        key = _network(address)
        now = self._clock()
        last = self._delays.pop(key, None)
        if last is None or now - last.at > _FORGET_S:
            seconds = self._first_delay_s
        else:
            seconds = min(last.seconds * 2, MAX_DELAY_S)
        self._delays[key] = _Delay(seconds, now)
        if len(self._delays) > _MAX_ADDRESSES:
            self._delays.popitem(last=False)
        return seconds

    def collect(self) -> Iterator[Metric]:
        """Yield the metric family, for a scrape."""
        family = CounterMetricFamily(
            "stoplog_requests_refused", "Requests refused for lack of access", labels=["reason", "scope"]
        )
        for labels, count in self._counts.items():
            family.add_metric(labels, count)
        yield family


def _network(address: str) -> str:
    """Return what shares a delay: an IPv4 address, or a /64 of IPv6, which one host can use as a whole.

    >>> _network("2001:db8::1") == _network("2001:db8::2"), _network("::ffff:192.0.2.1")
    (True, '192.0.2.1')
    """
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or IPv6Address(int(parsed) >> 64 << 64))
    return str(parsed)
