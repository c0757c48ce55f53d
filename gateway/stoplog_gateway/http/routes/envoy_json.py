"""``POST /json``: Envoy's rate limit service as JSON, which envoyproxy/ratelimit offers beside gRPC."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from stoplog.asgi.responses import JSON, Rendered
from stoplog.errors import InvalidInput, SettingsError
from stoplog_gateway.access.proxy_paths import ENVOY_JSON
from stoplog_gateway.envoy import REMEDY, rate_limit_service
from stoplog_gateway.http.failing_closed import ProxyOnUnavailable
from stoplog_gateway.http.params import LegacyHeaders, LimiterDep
from stoplog_gateway.http.problems import MALFORMED, NO_DESCRIPTOR, NOT_INSTALLED, ProblemError
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
    call = _parse(body)
    try:
        response = await service.decide(call, on_unavailable)
    except InvalidInput as exc:
        raise no_descriptor(exc) from exc
    except Exception:
        rendered = denial_after_bug(service, call.domain)
        if rendered is None:
            raise
        return RenderedResponse(rendered)
    return RenderedResponse(render_response(response))


def denial_after_bug(service: RateLimitService, domain: str | bytes) -> Rendered | None:
    """Log the exception that is being handled, a bug, and return the denial of its request.

    ``None``, and logs nothing, if no rule of the *domain* fails closed.
    """
    response = service.denial_after_failure(domain)
    if response is None:
        return None
    log.exception("bug in %s", ENVOY_JSON)
    return render_response(response)


def render_response(response: Any) -> Rendered:
    """Return the HTTP response with a ``RateLimitResponse``."""
    from google.protobuf.json_format import MessageToJson

    from stoplog_gateway.envoy.messages import OK

    content = MessageToJson(response, indent=None).encode()
    headers = [(b"content-type", JSON), (b"content-length", b"%d" % len(content))]
    headers += [(header.key.encode(), header.value.encode()) for header in response.response_headers_to_add]
    return Rendered(200 if response.overall_code == OK else 429, headers, content)


def no_descriptor(exc: InvalidInput) -> ProblemError:
    """Return the problem of a ``RateLimitRequest`` without valid descriptors."""
    return ProblemError(NO_DESCRIPTOR, f"{exc.field}: {exc.problem}", exc.field, exc.remedy)


def malformed(detail: str) -> ProblemError:
    """Return the problem of a body that is no ``RateLimitRequest``."""
    return ProblemError(MALFORMED, detail, "body", "send a RateLimitRequest in proto3 JSON")


def _parse(body: bytes) -> Any:
    from google.protobuf.json_format import Parse, ParseError

    from stoplog_gateway.envoy.messages import RateLimitRequest

    try:
        return Parse(body, RateLimitRequest())
    except (ParseError, ValueError, RecursionError) as exc:
        raise malformed(str(exc)) from exc
