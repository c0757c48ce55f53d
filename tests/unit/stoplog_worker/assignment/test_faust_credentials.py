from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth
from stoplog_worker.assignment.faust_credentials import AiokafkaTokens, faust_credentials

from stoplog.kafka.connection import KafkaConnection, Security
from stoplog.kafka.oauth_tokens import OAuthClient, TokenProvider
from tests.support.token_endpoint import TokenEndpoint


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    endpoint = TokenEndpoint({"worker": "secret"})
    yield endpoint
    endpoint.close()


def client_of(endpoint: TokenEndpoint) -> OAuthClient:
    return OAuthClient(endpoint.url, "worker", lambda: "secret")


def test_connection_without_security_has_no_credentials() -> None:
    assert faust_credentials(KafkaConnection("k:1")) is None


def test_tls_has_the_authority_of_the_settings(ca_file: Path) -> None:
    connection = KafkaConnection("k:1", Security("SSL", ca_file=ca_file))
    found = credentials_to_aiokafka_auth(faust_credentials(connection))
    assert (found["security_protocol"], found["ssl_context"]) == ("SSL", connection.ssl_context)
    assert found["ssl_context"].check_hostname


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
@pytest.mark.parametrize("protocol", ["SASL_SSL", "SASL_PLAINTEXT"])
def test_password_reaches_aiokafka_and_is_not_shown(mechanism: str, protocol: str) -> None:
    security = Security(protocol, mechanism=mechanism, username="worker", password="secret")
    credentials = faust_credentials(KafkaConnection("k:1", security))
    found = credentials_to_aiokafka_auth(credentials)
    assert (found["security_protocol"], found["sasl_mechanism"]) == (protocol, mechanism)
    assert (found["sasl_plain_username"], found["sasl_plain_password"]) == ("worker", "secret")
    assert (found["ssl_context"] is not None) == (protocol == "SASL_SSL")
    assert "secret" not in repr(credentials)


async def test_aiokafka_gets_the_token_of_the_other_clients(endpoint: TokenEndpoint) -> None:
    security = Security("SASL_PLAINTEXT", mechanism="OAUTHBEARER", oauth=client_of(endpoint))
    connection = KafkaConnection("k:1", security)
    assert connection.tokens is not None
    found = credentials_to_aiokafka_auth(faust_credentials(connection))
    token = await asyncio.wait_for(found["sasl_oauth_token_provider"].token(), 30)
    assert token == connection.tokens.get().value
    assert len(endpoint.requests) == 1


async def test_missing_token_is_an_error_that_aiokafka_retries(endpoint: TokenEndpoint) -> None:
    endpoint.down = True
    with pytest.raises(ConnectionError, match="no token for Kafka"):
        await AiokafkaTokens(TokenProvider(client_of(endpoint))).token()
