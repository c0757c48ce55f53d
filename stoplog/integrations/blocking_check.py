"""Turn a request of a framework with threads into a check. Shared by the WSGI and the Django middleware."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Generic, TypeAlias, TypeVar

from stoplog.client.answer import Answer
from stoplog.client.blocking import BlockingLimiter
from stoplog.client.fail_open import ALLOW, INTERNAL_ERROR, OnUnavailable, degraded_answer, fails_closed
from stoplog.client.listed import answer_listed
from stoplog.errors import GreenThreads, InvalidInput, StoplogError
from stoplog.identity.header_text import SeveralValues
from stoplog.identity.identifiers import peer_of, require_same_trust
from stoplog.identity.identity import Verdict
from stoplog.integrations.environ import Environ, EnvironRequest
from stoplog.log_throttle import LogThrottle
from stoplog.policy import usable_id

log = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")

Of: TypeAlias = T | Callable[[R], T]
"""A value, or a function that returns it for a request."""

LOG_PAUSE_S: Final = 60.0
"""Seconds between two log lines: a failure that happens once happens with every request."""


class BlockingRequestCheck(Generic[R]):
    """Checks requests with one limiter. The first one starts it, if nothing else has.

    Preflights (CORS) are not limited. An invalid id is replaced by its digest, so that it cannot bypass the
    limits.

    Args:
        limiter: Decides.
        identify: Returns the client id of a request; ``None`` if it is not limited. By default, the setting
            ``identify`` names it, and a request that it names no client for is denied.
        environ: Returns the WSGI environment of a request.
        cost: Requests to charge; 0 only looks.
        plan: Plan whose limits apply if the client has none of its own.
        resource: Resource with limits and counters of its own.
        on_unavailable: ``deny`` if the request fails closed.

    Raises:
        InvalidInput: *on_unavailable* is a value other than ``allow`` and ``deny``, or nothing identifies
            clients.
        SettingsError: gevent or eventlet has replaced the threads of this process.
    """

    def __init__(
        self,
        limiter: BlockingLimiter,
        identify: Callable[[R], str | None] | None,
        *,
        environ: Callable[[R], Environ],
        cost: Of[int, R],
        plan: Of[str, R],
        resource: Of[str, R],
        on_unavailable: Of[OnUnavailable, R],
    ) -> None:
        if not callable(on_unavailable):
            fails_closed(on_unavailable)  # refuses any other value
        if identify is None and not limiter.identity.chain:
            raise InvalidInput(
                "identify", "missing", 'pass one, such as header("X-Api-Key"), or set STOPLOG_IDENTIFY'
            )
        require_same_trust(identify, limiter.identity)
        limiter.start_on_first_use()
        self._limiter = limiter
        self._identify, self._environ = identify, environ
        self._cost, self._plan, self._resource = cost, plan, resource
        self._on_unavailable = on_unavailable
        self._throttle = LogThrottle(LOG_PAUSE_S)

    def check(self, request: R) -> Answer | None:
        """Return the answer for *request*; ``None`` if it is not limited, or fails open after an error.

        Exceptions of *identify* and of the other functions reach the application.

        Raises:
            GreenThreads: gevent or eventlet has replaced the threads of this process.
        """
        environ, identity = self._environ(request), self._limiter.identity
        metrics = self._limiter.metrics
        if identity.has_lists or self._identify is None:
            scope = EnvironRequest(environ).scope
            peer, headers = peer_of(scope), scope["headers"]
            if (listed := answer_listed(identity.verdict(peer, headers), metrics)) is not None:
                return listed
        if _is_preflight(environ):
            return None
        try:
            client = identity.client(peer, headers) if self._identify is None else self._identify(request)
        except SeveralValues:
            return answer_listed(Verdict.UNNAMED, metrics)
        if client is None:
            return answer_listed(Verdict.UNNAMED, metrics) if self._identify is None else None
        cost = _value_of(self._cost, request)
        plan = _value_of(self._plan, request)
        resource = _value_of(self._resource, request)
        on_unavailable: OnUnavailable = _value_of(self._on_unavailable, request)
        try:
            return self._limiter.check(
                usable_id(client),
                cost,
                plan=plan and usable_id(plan),
                resource=resource and usable_id(resource),
                on_unavailable=on_unavailable,
            )
        except GreenThreads:  # no request would ever be limited
            raise
        except Exception as exc:
            closed = on_unavailable != ALLOW  # an invalid value too
            metrics.count_degraded(INTERNAL_ERROR, closed)
            if (suppressed := self._throttle.admit()) is not None:
                how = "closed" if closed else "open"
                known = isinstance(exc, StoplogError | RuntimeError)
                text = "a request failed %s and was not counted: %s%s"
                log.error(text, how, exc, suppressed, exc_info=None if known else exc)
            return degraded_answer(INTERNAL_ERROR, True) if closed else None


def _is_preflight(environ: Environ) -> bool:
    return (
        environ["REQUEST_METHOD"] == "OPTIONS"
        and "HTTP_ORIGIN" in environ
        and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
    )


def _value_of(value: Of[T, R], request: R) -> T:
    return value(request) if callable(value) else value
