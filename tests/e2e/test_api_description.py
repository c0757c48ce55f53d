"""Schemathesis finds no difference between the API's description and a gateway's responses.

All checks of schemathesis run, except these:

- ``unsupported_method`` and ``allow_header_conformance`` for :data:`OPEN_METHODS`, which accept more methods
  than the description lists;
- ``positive_data_acceptance`` for a 422 that names one of :data:`BEYOND_SCHEMAS`;
- ``ignored_auth`` on the gateway without tokens; and on the other one for an operation that has passed it.

Routes that are not in the description, such as ``/json`` and the paths below ``/v1/authorize``, get no
request. In each test, an operation gets at most three generated requests, always the same ones. The test with
a token adds those of the phase *coverage*.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from ipaddress import IPv4Address
from itertools import count
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from requests.adapters import HTTPAdapter
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    ignored_auth,
    positive_data_acceptance,
    unsupported_method,
)
from stoplog_gateway.http.app import create_app
from stoplog_gateway.local.kafka_broker import Broker
from stoplog_gateway.settings import GatewaySettings

from tests.support.fake_limiter import FakeLimiter
from tests.support.system import System, running_system

load_all_checks()

BEYOND_SCHEMAS = re.compile(
    "a limit over|a window of|share a window|longer than 256 bytes of UTF-8|after: not a cursor|"
    "both limit open reservations|not an id of a reservation"
)
"""Errors about rules that JSON Schema cannot express: bounds in a text, its size in UTF-8, partitions, and
the content of ids."""

OPEN_METHODS = ("/v1/authorize", "/v1/limits/{client_id}/history", "/v1/plans/{plan}/history")
"""Paths with undescribed methods: proxies send any method to the first, and the others are also ids."""

TOKEN = "a" * 43
FEW: dict[str, Any] = {
    "max_examples": 3,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture(scope="module")
def system(fresh_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("description")
    tokens = folder / "tokens"
    tokens.write_text(f"all check,read,admin sha256:{sha256(TOKEN.encode()).hexdigest()}\n")
    tokens.chmod(0o600)
    with running_system(fresh_kafka, folder, apply_timeout_ms=25_000, deadline_ms=5_000) as system:
        system.add_gateway(
            tokens_file=tokens, check_token="required", apply_timeout_ms=25_000, deadline_ms=5_000
        )
        system.wait_ready()
        yield system


schema, quick_schema = (
    schemathesis.openapi.from_dict(create_app(GatewaySettings(), FakeLimiter()).openapi()) for _ in range(2)
)
quick_schema.config.phases.coverage.enabled = False  # about 80 requests for each operation


_numbers = count(1)


class ManyAddresses(requests.Session):
    """Sends each request from another address of this machine: refusals of one address become slow."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send *request* over a connection of its own."""
        adapter = HTTPAdapter()
        source = str(IPv4Address("127.1.0.0") + next(_numbers))
        adapter.init_poolmanager(1, 1, source_address=(source, 0))
        self.mount("http://", adapter)
        try:
            return super().send(request, **kwargs)
        finally:
            adapter.close()


auth_was_checked: set[str] = set()
"""Operations that have refused a missing and a wrong token. Once is enough: refusals are delayed."""


def validate(case: schemathesis.Case[Any], url: str, headers: dict[str, str], *, tokens: bool) -> None:
    with ManyAddresses() as session:
        response = case.call(base_url=url, headers=headers, session=session)
        excluded: list[Any] = []
        if not tokens or case.operation.label in auth_was_checked:
            excluded.append(ignored_auth)
        elif response.status_code < 300:
            auth_was_checked.add(case.operation.label)
        if case.path in OPEN_METHODS:
            excluded += [unsupported_method, allow_header_conformance]
        if response.status_code == 422 and BEYOND_SCHEMAS.search(response.json()["detail"]):
            excluded.append(positive_data_acceptance)
        case.validate_response(
            response,
            checks=CHECKS.get_all(),  # type: ignore[arg-type]
            excluded_checks=excluded,
            headers=headers,
            transport_kwargs={"base_url": url, "session": session},
        )


@schema.parametrize()
@settings(**FEW)
def test_responses_with_a_token_match_the_description(case: schemathesis.Case[Any], system: System) -> None:
    validate(case, system.gateways[1].url, {"Authorization": f"Bearer {TOKEN}"}, tokens=True)


@quick_schema.parametrize()
@settings(**FEW)
def test_responses_without_tokens_match_the_description(case: schemathesis.Case[Any], system: System) -> None:
    validate(case, system.gateways[0].url, {}, tokens=False)
