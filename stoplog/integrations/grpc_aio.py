"""An interceptor for servers of ``grpc.aio``: each call is checked before its method runs.

::

    grpc.aio.server(interceptors=[RateLimitInterceptor(limiter=limiter, identify=metadata("x-api-key"))])

A denied call ends with ``RESOURCE_EXHAUSTED``, or with ``UNAVAILABLE`` if it failed closed. Its trailing
metadata has ``retry-after-ms``, if waiting helps. A call with several values of the metadata that names its
client ends with ``PERMISSION_DENIED``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

try:
    import grpc
except ImportError as exc:
    raise ImportError(
        "RateLimitInterceptor needs grpcio, which is not installed: run pip install grpcio", name=exc.name
    ) from exc

from stoplog.asgi.denial import denial_text
from stoplog.client.answer import Answer
from stoplog.client.fail_open import ALLOW, INTERNAL_ERROR, OnUnavailable, degraded_answer, fails_closed
from stoplog.client.limiter import Limiter
from stoplog.client.listed import NO_CLIENT, answer_listed
from stoplog.errors import InvalidInput
from stoplog.identity.header_text import SeveralValues, parts_of, sole_value
from stoplog.identity.identity import Verdict
from stoplog.log_throttle import LogThrottle
from stoplog.policy import usable_id

log = logging.getLogger(__name__)

T = TypeVar("T")

_KEY: Final = re.compile(r"[0-9A-Za-z_.-]+")

Of: TypeAlias = T | Callable[[grpc.HandlerCallDetails], T]
"""A value, or a function that returns it for a call."""

LOG_PAUSE_S: Final = 60.0
"""Seconds between two log lines: a failure that happens once happens with every call."""


def metadata(name: str) -> Callable[[grpc.HandlerCallDetails], str | None]:
    """Return a function that identifies a client by the metadata *name* of its call.

    A call whose metadata has several different values is denied. Empty ones do not count. Upper and lower
    case of *name* are the same, as in gRPC, whose keys arrive in lower case.

    Raises:
        InvalidInput: *name* is no key of metadata.
    """
    if _KEY.fullmatch(name) is None:
        raise InvalidInput("name", f"{name[:60]!r} is no key of metadata", "use a name such as x-api-key")
    name = name.lower()

    def identify(details: grpc.HandlerCallDetails) -> str | None:
        values = [value for key, value in details.invocation_metadata or () if key == name]
        found = [value.encode() if isinstance(value, str) else value for value in values]
        # In binary metadata, a comma is a byte like any other.
        value = sole_value(found if name.endswith("-bin") else parts_of(found), name)
        return value.decode("utf-8", "surrogateescape") or None

    return identify


class RateLimitInterceptor(grpc.aio.ServerInterceptor):
    """Checks each call with a limiter. The first call starts the limiter, if nothing else has.

    A streaming call is checked once, when it begins.

    Args:
        limiter: Decides.
        identify: Returns the client id of a call from its ``HandlerCallDetails``, or ``None`` if the call is
            not limited.
        cost: Requests to charge; 0 only looks. A value or a function.
        plan: Plan whose limits apply if the client has none of its own. A value or a function.
        resource: Resource with limits and counters of its own. A value or a function.
        on_unavailable: ``deny`` makes a call fail closed. A value or a function.

    Raises:
        InvalidInput: *on_unavailable* is invalid.
    """

    def __init__(
        self,
        *,
        limiter: Limiter,
        identify: Callable[[grpc.HandlerCallDetails], str | None],
        cost: Of[int] = 1,
        plan: Of[str] = "",
        resource: Of[str] = "",
        on_unavailable: Of[OnUnavailable] = "allow",
    ) -> None:
        if not callable(on_unavailable):
            fails_closed(on_unavailable)  # refuses any other value
        limiter.start_on_first_use()
        self._limiter = limiter
        self._identify = identify
        self._cost, self._plan, self._resource = cost, plan, resource
        self._on_unavailable = on_unavailable
        self._throttle = LogThrottle(LOG_PAUSE_S)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of a call, or one that denies it."""
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method
            return None
        answer = await self._check(handler_call_details)
        return handler if answer is None or answer.allowed else _denying(handler, answer)

    async def _check(self, details: grpc.HandlerCallDetails) -> Answer | None:
        try:
            client = self._identify(details)
        except SeveralValues:
            return answer_listed(Verdict.UNNAMED, self._limiter.metrics)
        if client is None:
            return None
        cost, plan = _value_of(self._cost, details), _value_of(self._plan, details)
        resource = _value_of(self._resource, details)
        on_unavailable: OnUnavailable = _value_of(self._on_unavailable, details)
        try:
            return await self._limiter.check(
                usable_id(client),
                cost,
                plan=plan and usable_id(plan),
                resource=resource and usable_id(resource),
                on_unavailable=on_unavailable,
            )
        except Exception as exc:  # noqa: BLE001 - no failure here may fail a call that may fail open
            closed = on_unavailable != ALLOW  # an invalid value too
            self._limiter.metrics.count_degraded(INTERNAL_ERROR, closed)
            if (suppressed := self._throttle.admit()) is not None:
                how = "closed" if closed else "open"
                log.error("a call failed %s and was not counted: %s%s", how, exc, suppressed)
            return degraded_answer(INTERNAL_ERROR, True) if closed else None


def _denying(handler: Any, answer: Answer) -> Any:
    """Return a handler of the same kind as *handler* that ends each call as *answer* says."""
    detail, remedy = denial_text(answer)
    text = f"{detail}; {remedy}" if remedy else detail
    code = grpc.StatusCode.UNAVAILABLE if answer.degraded else grpc.StatusCode.RESOURCE_EXHAUSTED
    if answer.reason == NO_CLIENT:
        code = grpc.StatusCode.PERMISSION_DENIED
    wait_ms = answer.retry_after_ms
    trailing = () if wait_ms is None else (("retry-after-ms", str(wait_ms)),)

    async def deny(_request: Any, context: Any) -> NoReturn:
        await context.abort(code, text, trailing)
        raise AssertionError  # abort() raises

    async def deny_stream(request: Any, context: Any) -> AsyncIterator[Any]:
        await deny(request, context)
        yield

    kinds: dict[tuple[bool, bool], Any] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    kind = kinds[bool(handler.request_streaming), bool(handler.response_streaming)]
    behavior = deny_stream if handler.response_streaming else deny
    return kind(behavior, handler.request_deserializer, handler.response_serializer)


def _value_of(value: Of[T], details: grpc.HandlerCallDetails) -> T:
    return value(details) if callable(value) else value
