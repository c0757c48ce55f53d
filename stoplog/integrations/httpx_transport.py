"""An httpx transport that keeps to the limits of an API that you call: requests wait for their turn.

::

    transport = RateLimitTransport(limiter=limiter, limits="10/second")
    async with httpx.AsyncClient(transport=transport) as client: ...

All processes that share the store share the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

try:
    import httpx
except ImportError as exc:
    raise ImportError(
        "RateLimitTransport needs httpx, which is not installed: run pip install httpx", name=exc.name
    ) from exc

from stoplog.client.limiter import Limiter
from stoplog.errors import InvalidInput
from stoplog.policy import check_id, parse_policy, plan_name, usable_id


def host(request: httpx.Request) -> str:
    """Return the host of a request, which is the client of its check by default."""
    return request.url.host


class RateLimitTransport(httpx.AsyncBaseTransport):
    """Sends each request once its limit allows it, with :meth:`stoplog.Limiter.wait`.

    If the store does not answer, requests are sent without waiting. Redirects and retries are requests of
    their own.

    Args:
        limiter: Decides. The first request starts it, if nothing else has.
        limits: One limit or several, such as ``"10/second"``. Limits that are stored for the client come
            first.
        key: Returns the client of a request; ``None`` if it is not limited. By default its host.
        cost: Returns what a request costs; by default 1.
        resource: Name under which the requests are counted.
        timeout: Longest time that a request waits, s; ``None`` for no bound.
        transport: Sends the requests. By default, one with httpx's defaults.

    Raises:
        InvalidCost: From a request whose cost exceeds the limit.
        InvalidInput: An argument is invalid.
        WaitTimeout: From a request that the limits did not allow in time. It was not sent.
    """

    def __init__(
        self,
        *,
        limiter: Limiter,
        limits: str | Sequence[str],
        key: Callable[[httpx.Request], str | None] = host,
        cost: Callable[[httpx.Request], int] = lambda _: 1,
        resource: str = "outbound",
        timeout: float | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._plan = check_id(plan_name(parse_policy(limits, "limits")), "limits")
        self._resource = check_id(resource, "resource")
        if timeout is not None and not timeout >= 0:
            raise InvalidInput("timeout", f"{timeout!r} is negative or no number", "give seconds, or None")
        limiter.start_on_first_use()
        self._limiter = limiter
        self._key, self._cost = key, cost
        self._timeout = timeout
        self._transport = transport or httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send *request* once it is permitted."""
        client = self._key(request)
        if client is not None:
            await self._limiter.wait(
                usable_id(client),
                self._cost(request),
                self._timeout,
                plan=self._plan,
                resource=self._resource,
            )
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        """Close the transport that sends the requests. The limiter goes on."""
        await self._transport.aclose()
