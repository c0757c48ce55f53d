"""Schemathesis finds no difference between the API's description and its responses."""

from __future__ import annotations

import re
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from stoplog_gateway.http.app import create_app
from stoplog_gateway.settings import GatewaySettings

from tests.support.access import access_control
from tests.support.fake_limiter import FakeLimiter

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
    unsupported_method,
)

BEYOND_SCHEMAS = re.compile(
    "a limit over|a window of|share a window|longer than 256 bytes of UTF-8|after: not a cursor"
)
"""Errors about rules that JSON Schema cannot express: bounds in a text, its size in UTF-8, and partitions."""

LOCAL = {"Host": "localhost"}

schema = schemathesis.openapi.from_asgi(
    "/openapi.json", create_app(GatewaySettings(), FakeLimiter(), access_control()), headers=LOCAL
)


OPEN_METHODS = ("/v1/authorize", "/v1/limits/{client_id}/history", "/v1/plans/{plan}/history")
"""Paths with undescribed methods: proxies send any method to the first, and the others are also ids."""


@schema.parametrize()
@settings(max_examples=5, derandomize=True, suppress_health_check=list(HealthCheck))
def test_responses_match_the_description_of_the_api(case: schemathesis.Case[Any]) -> None:
    excluded = [unsupported_method] if case.path in OPEN_METHODS else []
    response = case.call(headers=LOCAL)
    checks = [check for check in CHECKS if check not in excluded]
    if response.status_code != 422 or not BEYOND_SCHEMAS.search(response.json()["detail"]):
        checks.append(positive_data_acceptance)
    case.validate_response(response, checks=checks, headers=LOCAL)
