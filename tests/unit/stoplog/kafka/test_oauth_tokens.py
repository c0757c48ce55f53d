from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic, time

import pytest

import stoplog.kafka.oauth_tokens as oauth_tokens
from stoplog.errors import SettingsError, Unavailable
from stoplog.kafka.oauth_tokens import OAuthClient, TokenProvider
from tests.support.system import eventually
from tests.support.token_endpoint import TokenEndpoint

SECRET = "s3cret: with/odd+chars"


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    endpoint = TokenEndpoint({"gateway": SECRET})
    yield endpoint
    endpoint.close()


def provider(endpoint: TokenEndpoint, secret: str = SECRET, scope: str | None = None) -> TokenProvider:
    return TokenProvider(OAuthClient(endpoint.url, "gateway", lambda: secret, scope))


def test_token_is_requested_once_for_all_clients(endpoint: TokenEndpoint) -> None:
    tokens = provider(endpoint, scope="kafka")
    first = tokens.get()
    assert [tokens.get(), tokens.for_librdkafka("").value] == [first, first.value]
    assert first.expires_at == pytest.approx(time() + 3_600, abs=60)
    assert endpoint.requests == [{"client": "gateway", "grant_type": "client_credentials", "scope": "kafka"}]


def test_token_is_renewed_before_it_expires(endpoint: TokenEndpoint) -> None:
    endpoint.lifetime_s = 2.0
    tokens = provider(endpoint)
    until = tokens.get().expires_at + 2.0  # two lifetimes
    while time() < until:
        assert tokens.get().expires_at > time()  # a token that has expired would be an error
        threading.Event().wait(0.05)
    assert len(endpoint.requests) >= 4


def test_librdkafka_takes_the_next_token_soon_after_its_renewal(endpoint: TokenEndpoint) -> None:
    endpoint.lifetime_s = 60.0
    tokens = provider(endpoint)
    taken_at = tokens.get().expires_at - 30.0
    for _ in range(2):
        now = time()
        expires_at = tokens.for_librdkafka("").expires_at
        # It asks again when 80 % of the time is over.
        assert now + 0.8 * (expires_at - now) == pytest.approx(taken_at, abs=0.5)
        assert now + 0.8 * (expires_at - now) > taken_at
    endpoint.down = True
    tokens.renew()
    assert tokens.for_librdkafka("").expires_at == pytest.approx(time() + 1.5, abs=0.5), "the next request"
    endpoint.down, endpoint.lifetime_s = False, 0.2
    tokens.renew()
    assert tokens.for_librdkafka("").expires_at == tokens.get().expires_at, "never later than the token"


def test_endpoint_that_is_down_leaves_the_token_in_use(
    endpoint: TokenEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.lifetime_s = 60.0
    tokens = provider(endpoint)
    token = tokens.get()
    endpoint.down = True
    waits = [tokens.renew() for _ in range(6)]
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert tokens.get() == token
    endpoint.down = False
    assert tokens.renew() == 30.0
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings[0].startswith(f"no new token for Kafka: {endpoint.url} answered 503")
    assert warnings[1:] == [f"{endpoint.url} issues tokens for Kafka again"]


def test_expired_token_is_an_error_until_the_endpoint_answers(endpoint: TokenEndpoint) -> None:
    endpoint.lifetime_s = 0.4
    tokens = provider(endpoint)
    expired = tokens.get()
    endpoint.down = True
    eventually("the token has expired", lambda: time() > expired.expires_at and tokens._failure is not None)
    with pytest.raises(Unavailable, match=r"no token for Kafka: .* answered 503"):
        tokens.get()
    endpoint.down, endpoint.lifetime_s = False, 60.0
    eventually("there is a token", lambda: has_token(tokens))


def has_token(tokens: TokenProvider) -> bool:
    with suppress(Unavailable):
        return bool(tokens.get())
    return False


def test_wrong_secret_names_the_settings_and_is_never_shown(
    endpoint: TokenEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(Unavailable, match=r"answered 401 Unauthorized: check STOPLOG_KAFKA_OAUTH") as refused:
        provider(endpoint, "another-secret").get()
    assert "another-secret" not in str(refused.value) + caplog.text


def test_secret_is_read_again_for_each_token(endpoint: TokenEndpoint, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    tokens = TokenProvider(OAuthClient(endpoint.url, "gateway", file.read_text))
    tokens.get()
    endpoint.secrets["gateway"] = "rotated"
    file.write_text("rotated")
    assert tokens.renew() == 1_800.0


def test_secret_that_can_no_longer_be_read_is_a_failure_of_the_token(endpoint: TokenEndpoint) -> None:
    def unreadable() -> str:
        raise SettingsError("STOPLOG_KAFKA_OAUTH_CLIENT_SECRET_FILE=/x cannot be read")

    tokens = TokenProvider(OAuthClient(endpoint.url, "gateway", unreadable))
    with pytest.raises(Unavailable, match="CLIENT_SECRET_FILE=/x cannot be read"):
        tokens.get()


def test_endpoint_that_never_answers_does_not_hold_up_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oauth_tokens, "_WAIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/token"
        tokens = TokenProvider(OAuthClient(url, "gateway", lambda: SECRET))
        began = monotonic()
        with pytest.raises(Unavailable, match=f"no token for Kafka: {url} has not answered in 0.2 s"):
            tokens.get()
        assert monotonic() - began < oauth_tokens._REQUEST_S


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "has no access_token with expires_in"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"access_token": "x"}', "has no access_token with expires_in"),
        (b"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "answered 302 Found: check"),
        (b"", "does not answer"),
    ],
)
def test_response_that_is_no_token_is_explained(response: bytes, text: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(65_536)
                connection.sendall(response)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):  # a rest that is not read would reset the connection
                    pass

        threading.Thread(target=serve).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/token"
        with pytest.raises(Unavailable, match=text):
            TokenProvider(OAuthClient(url, "gateway", lambda: SECRET)).get()
