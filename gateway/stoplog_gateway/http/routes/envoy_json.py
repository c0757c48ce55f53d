"""``POST /json``: Envoy's rate limit service as JSON, which envoyproxy/ratelimit offers beside gRPC."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from stoplog.asgi.responses import Rendered
from stoplog.errors import InvalidInput, SettingsError
from stoplog_gateway.access.proxy_paths import ENVOY_JSON
from stoplog_gateway.envoy import REMEDY, rate_limit_service
from stoplog_gateway.envoy.call import RateLimitCall, call_of, parse_plain
from stoplog_gateway.http.failing_closed import ProxyOnUnavailable
from stoplog_gateway.http.params import LegacyHeaders, LimiterDep
from stoplog_gateway.http.problems import (
    MALFORMED,
    NO_DESCRIPTOR,
    NOT_INSTALLED,
    ProblemError,
    render_problem,
)
from stoplog_gateway.http.request_body import SlowJsonBody
from stoplog_gateway.http.responses import RenderedResponse

if TYPE_CHECKING:
    from stoplog_gateway.envoy.service import RateLimitService

log: Final = logging.getLogger(__name__)

router = APIRouter(default_response_class=Response)


@router.post(ENVOY_JSON, include_in_schema=False)
async def should_rate_limit(
    request: Request,
    body: SlowJsonBody,
    on_unavailable: ProxyOnUnavailable,
    limiter: LimiterDep,
    legacy: LegacyHeaders,
) -> Response:
    """Answer a ``RateLimitRequest`` in proto3 JSON: 200 if all limits allow it, otherwise 429."""
    try:
        service = rate_limit_service(limiter, request.app.state.mapping, legacy_headers=legacy)
    except SettingsError as exc:
        raise ProblemError(NOT_INSTALLED, str(exc), None, REMEDY) from exc
    domain: str | bytes = ""
    try:
        call = parse_call(body)
        domain = call.domain
        return RenderedResponse(service.render(await service.decide(call, on_unavailable)))
    except Exception as exc:
        rendered = render_failed_call(service, exc, domain)
        if rendered is None:
            raise
        return RenderedResponse(rendered)


def parse_call(body: bytes) -> RateLimitCall:
    """Return the call in the body of a request.

    Raises:
        ProblemError: 400, the body is no ``RateLimitRequest``.
        InvalidInput: As :func:`~stoplog_gateway.envoy.call.call_of`.
    """
    call = parse_plain(body)
    return call_of(parse_message(body)) if call is None else call


def render_failed_call(service: RateLimitService, exc: Exception, domain: str | bytes) -> Rendered | None:
    """Return the response to a call of *domain* that *exc* prevents; ``None`` if it is the same as elsewhere.

    The exception is the one that is being handled. If it is a bug, the call is denied, and the bug is logged,
    if any rule of the domain fails closed.
    """
    if isinstance(exc, ProblemError):
        return None
    if isinstance(exc, InvalidInput):
        problem = ProblemError(NO_DESCRIPTOR, f"{exc.field}: {exc.problem}", exc.field, exc.remedy).problem
        return render_problem(problem)
    denial = service.denial_after_failure(domain)
    if denial is None:
        return None
    log.exception("bug in %s", ENVOY_JSON)
    return service.render(denial)


def malformed(detail: str) -> ProblemError:
    """Return the problem of a body that is no ``RateLimitRequest``."""
    return ProblemError(MALFORMED, detail, "body", "send a RateLimitRequest in proto3 JSON")


def parse_message(body: bytes) -> Any:
    """Return the ``RateLimitRequest`` in the body of a request.

    Raises:
        ProblemError: 400, the body is none.
    """
    from google.protobuf.json_format import Parse, ParseError

    from stoplog_gateway.envoy.messages import RateLimitRequest

    try:
        return Parse(body, RateLimitRequest())
    except (ParseError, ValueError, RecursionError) as exc:
        raise malformed(str(exc)) from exc
