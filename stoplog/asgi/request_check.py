"""Turn a request of an application into a check. Shared by the middleware and the FastAPI dependency."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from time import monotonic
from typing import Final, NamedTuple, TypeAlias, TypeVar, cast

from starlette.requests import HTTPConnection

from stoplog.asgi.cors import is_preflight
from stoplog.asgi.header_text import with_text
from stoplog.asgi.outcome import Charge, Outcome
from stoplog.client.answer import Answer
from stoplog.client.fail_open import ALLOW, INTERNAL_ERROR, OnUnavailable, degraded_answer, fails_closed
from stoplog.client.limiter import Limiter
from stoplog.client.listed import answer_listed
from stoplog.client.reservations import check_ttl
from stoplog.errors import Denied, InvalidInput
from stoplog.identity.header_text import SeveralValues
from stoplog.identity.identifiers import peer_of, require_same_trust
from stoplog.identity.identity import Verdict
from stoplog.log_throttle import LogThrottle
from stoplog.policy import usable_id
from stoplog.wire.checks import Check

log = logging.getLogger(__name__)

T = TypeVar("T")

Of: TypeAlias = T | Callable[[HTTPConnection], T | Awaitable[T]]
"""A value, or a function that returns it for a request or WebSocket.

The function may be sync or async. It must not block.
"""

Identify: TypeAlias = Callable[[HTTPConnection], str | Awaitable[str | None] | None]
"""Returns the client id of a request; ``None`` means that the request is not limited.

The empty text is a client like any other.
"""

TRY_AGAIN_LATER: Final = 1013
"""Close code of a denied WebSocket."""

LOG_PAUSE_S: Final = 60.0
"""Seconds between two log lines: a failure that happens once happens with every request."""


class Checked(NamedTuple):
    """The answer for one request, and the outcome to settle if its cost is reserved.

    Without an answer, the request is not limited, or an error made it fail open.
    """

    answer: Answer | None
    outcome: Outcome | None = None


class RequestCheck:
    """Checks the requests of an application with one limiter.

    The first request starts the limiter, if nothing else has. Preflights (CORS) are not limited.

    A client id is often a text that the caller chose. An invalid one must not bypass the limits, so it is
    replaced by its digest. An empty plan or resource means none.

    Args:
        limiter: Decides.
        identify: Returns the client id of a request; ``None`` if it is not limited. By default, the chain of
            ``STOPLOG_IDENTIFY`` does, and a request that it names no client for is denied.
        cost: Requests to charge; 0 only looks.
        plan: Plan whose limits apply if the client has none of its own.
        resource: Resource with limits and counters of its own.
        on_unavailable: ``deny`` if the request fails closed.
        charge: Returns the units to charge for a response. If it is given, the cost is reserved.
        ttl_ms: Milliseconds that a reservation lasts.

    Raises:
        InvalidInput: *on_unavailable* is a value other than ``allow`` and ``deny``, *charge* is no function,
            or *ttl_ms* is out of bounds. Or nothing names the clients.
    """

    def __init__(
        self,
        limiter: Limiter,
        identify: Identify | None,
        *,
        cost: Of[int],
        plan: Of[str],
        resource: Of[str],
        on_unavailable: Of[OnUnavailable],
        charge: Charge | None,
        ttl_ms: int,
    ) -> None:
        if not callable(on_unavailable):
            fails_closed(on_unavailable)  # refuses any other value
        if charge is not None and not callable(charge):
            raise InvalidInput("charge", "not a function", "use a function of the status and the headers")
        check_ttl(ttl_ms)
        if identify is None and not limiter.identity.chain:
            raise InvalidInput(
                "identify", "missing", "pass a function, such as client_address(), or set STOPLOG_IDENTIFY"
            )
        require_same_trust(identify, limiter.identity)
        limiter.start_on_first_use()
        self._limiter = limiter
        self._identify = identify or self._follow_chain
        self._without_client = Verdict.UNNAMED if identify is None else Verdict.COUNTED
        self._cost, self._plan, self._resource = cost, plan, resource
        self._on_unavailable = on_unavailable
        self._charge, self._ttl_ms = charge, ttl_ms
        self._throttle = LogThrottle(LOG_PAUSE_S, monotonic)

    async def check(self, connection: HTTPConnection) -> Checked:
        """Check one request, or reserve its cost.

        An error that makes the request fail closed has a degraded answer. Raises nothing of its own.
        Exceptions of *identify* and of the other functions reach the application.
        """
        verdict = self._limiter.identity.verdict(peer_of(connection.scope), connection.scope["headers"])
        if (listed := answer_listed(verdict, self._limiter.metrics)) is not None:
            return Checked(listed)
        if is_preflight(connection.scope):
            return Checked(None)
        connection = with_text(connection)
        try:
            client = self._identify(connection)
            if isawaitable(client):
                client = await client
        except SeveralValues:
            return Checked(answer_listed(Verdict.UNNAMED, self._limiter.metrics))
        if client is None:
            return Checked(answer_listed(self._without_client, self._limiter.metrics))
        cost = await _value_of(self._cost, connection)
        plan = await _value_of(self._plan, connection)
        resource = await _value_of(self._resource, connection)
        on_unavailable: OnUnavailable = await _value_of(self._on_unavailable, connection)
        try:
            check = Check(usable_id(client), cost, plan and usable_id(plan), resource and usable_id(resource))
            if self._charge is not None:
                return await self._reserve(check, on_unavailable, self._charge)
            answer = await self._limiter.check(
                check.client,
                check.cost,
                plan=check.plan,
                resource=check.resource,
                on_unavailable=on_unavailable,
            )
        except Exception as exc:  # noqa: BLE001 - no failure here may fail a request of the application
            closed = on_unavailable != ALLOW  # an invalid value too
            self._limiter.metrics.count_degraded(INTERNAL_ERROR, closed)
            how = "closed" if closed else "open"
            self._log_failure(exc, f"a request failed {how} and was not counted")
            return Checked(degraded_answer(INTERNAL_ERROR, True) if closed else None)
        return Checked(answer)

    def _follow_chain(self, connection: HTTPConnection) -> str | None:
        return self._limiter.identity.client(peer_of(connection.scope), connection.scope["headers"])

    async def _reserve(self, check: Check, on_unavailable: OnUnavailable, charge: Charge) -> Checked:
        held = self._limiter.reserve(
            check.client,
            check.cost,
            ttl_ms=self._ttl_ms,
            plan=check.plan,
            resource=check.resource,
            on_unavailable=on_unavailable,
        )
        try:
            await held.open()
        except Denied as denied:
            return Checked(denied.reservation)
        return Checked(held.reservation, Outcome(held, charge, self._log_failure))

    def _log_failure(self, exc: Exception, effect: str) -> None:
        if (suppressed := self._throttle.admit()) is not None:
            log.error(
                "%s: %s%s",
                effect,
                exc,
                suppressed,
                exc_info=None if isinstance(exc, InvalidInput | RuntimeError) else exc,
            )


async def _value_of(value: Of[T], connection: HTTPConnection) -> T:
    found = value(connection) if callable(value) else value
    return cast(T, await found if isawaitable(found) else found)
