"""``POST /json``: Envoy's rate limit service as JSON, as envoyproxy/ratelimit serves it beside gRPC."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from stoplog.errors import InvalidInput, SettingsError
from stoplog_gateway.envoy import REMEDY, rate_limit_service
from stoplog_gateway.http.params import LegacyHeaders, Store
from stoplog_gateway.http.problems import BAD_QUESTION, MALFORMED, NOT_INSTALLED, ProblemError
from stoplog_gateway.http.request_body import SlowJsonBody
from stoplog_gateway.http.responses import JSON, Rendered, RenderedResponse

router = APIRouter(default_response_class=Response)


@router.post("/json", include_in_schema=False)
async def should_rate_limit(
    request: Request, body: SlowJsonBody, limiter: Store, legacy: LegacyHeaders
) -> Response:
    """A ``RateLimitRequest`` in proto3 JSON: 200 with the response if all is within limits, 429 if not."""
    try:
        service = rate_limit_service(limiter, request.app.state.mapping, legacy_headers=legacy)
    except SettingsError as exc:
        raise ProblemError(NOT_INSTALLED, str(exc), None, REMEDY) from exc
    from google.protobuf.json_format import MessageToJson

    from stoplog_gateway.envoy.messages import OK

    try:
        answer = await service.decide(_parse(body))
    except InvalidInput as exc:
        raise ProblemError(BAD_QUESTION, f"{exc.field}: {exc.problem}", exc.field, exc.remedy) from exc
    content = MessageToJson(answer, indent=None).encode()
    headers = [(b"content-type", JSON), (b"content-length", b"%d" % len(content))]
    headers += [(it.key.encode(), it.value.encode()) for it in answer.response_headers_to_add]
    return RenderedResponse(Rendered(200 if answer.overall_code == OK else 429, headers, content))


def _parse(body: bytes) -> Any:
    from google.protobuf.json_format import Parse, ParseError

    from stoplog_gateway.envoy.messages import RateLimitRequest

    try:
        return Parse(body, RateLimitRequest())
    except (ParseError, ValueError, RecursionError) as exc:
        raise ProblemError(MALFORMED, str(exc), "body", "send a RateLimitRequest in proto3 JSON") from exc
