"""What a request of an application asks of the limiter, and how its refusal is told; nothing here fails.

Shared by the ASGI middleware and the dependency for single routes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from time import monotonic
from typing import Final, TypeAlias, TypeVar, cast

from starlette.requests import HTTPConnection

from stoplog.asgi.rate_limit_headers import reset_s
from stoplog.client.answer import Answer
from stoplog.client.limiter import Limiter
from stoplog.errors import InvalidInput
from stoplog.log_throttle import LogThrottle
from stoplog.policy import usable_id

log = logging.getLogger(__name__)

T = TypeVar("T")

Of: TypeAlias = T | Callable[[HTTPConnection], T | Awaitable[T]]
"""A value, or a function of the request (or WebSocket), sync or async, that has it; it must not block."""

Identify: TypeAlias = Callable[[HTTPConnection], str | Awaitable[str | None] | None]
"""Who asks: the id that limits are kept by; ``None``: not limited at all. Empty text is a client as well."""

TRY_AGAIN_LATER: Final = 1013
"""What a WebSocket is closed with that is denied."""

QUIET_S: Final = 60.0
"""Between two lines in the log: what fails once fails for every request."""


class Asking:
    """Asks one limiter about requests.

    Ids are often a caller's own text, and one that cannot be used must not be a way past the limits: it is
    replaced by its digest. An empty plan or resource is none.

    Args:
        limiter: What is asked.
        identify: The client's id.
        cost: Requests to spend; 0 only looks.
        plan: Whose limits hold if the client has none of its own.
        resource: What is limited apart from the rest.
    """

    def __init__(
        self, limiter: Limiter, identify: Identify, *, cost: Of[int], plan: Of[str], resource: Of[str]
    ) -> None:
        self._limiter = limiter
        self._identify = identify
        self._cost, self._plan, self._resource = cost, plan, resource
        self._throttle = LogThrottle(QUIET_S, monotonic)

    async def ask(self, connection: HTTPConnection) -> Answer | None:
        """The answer for one request; ``None``: it is not limited, or could not be asked about.

        What *identify* and the others raise is the application's own matter, and goes on to it.
        """
        client = self._identify(connection)
        if isawaitable(client):
            client = await client
        if client is None:
            return None
        cost = await _of(self._cost, connection)
        plan = await _of(self._plan, connection)
        resource = await _of(self._resource, connection)
        try:
            return await self._limiter.check(
                usable_id(client),
                cost,
                plan=plan and usable_id(plan),
                resource=resource and usable_id(resource),
            )
        except Exception as exc:  # noqa: BLE001 - no mistake in here is worth an application's request
            self._tell(exc)
            return None

    def _tell(self, exc: Exception) -> None:
        if (suppressed := self._throttle.admit()) is not None:
            log.error(
                "a request was let through without being counted: %s%s",
                exc,
                suppressed,
                exc_info=None if isinstance(exc, InvalidInput | RuntimeError) else exc,
            )


async def _of(value: Of[T], connection: HTTPConnection) -> T:
    found = value(connection) if callable(value) else value
    return cast(T, await found if isawaitable(found) else found)


def refusal(answer: Answer) -> tuple[str, str | None]:
    """What a denial says to people: what is wrong, and what to do if anything helps.

    >>> refusal(Answer(False, 100, 0, 60_000, 2_001, 7))
    ('the limit of 100 is used up', 'try again in 3 s')
    >>> refusal(Answer(False, 0, 0, 0, None, 7))
    ('this is more than the limit of 0 ever allows', None)
    """
    if answer.retry_after_ms is None:
        return f"this is more than the limit of {answer.limit} ever allows", None
    return f"the limit of {answer.limit} is used up", f"try again in {reset_s(answer)} s"
