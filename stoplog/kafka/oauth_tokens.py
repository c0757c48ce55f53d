"""Tokens for OAUTHBEARER: request them from a token endpoint, and renew them before they expire.

One provider serves every Kafka client of a process. A thread renews the token in the background, so no client
waits for the token endpoint once there is a token.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, NamedTuple

from stoplog.errors import SettingsError, StoplogError, Unavailable
from stoplog.log_throttle import LogThrottle

_log = logging.getLogger("stoplog.kafka_tokens")

_REQUEST_S: Final = 4.0
"""Seconds that the token endpoint may take for each step of a request."""

_WAIT_S: Final = 5.0
"""Seconds that a client waits if there is no valid token. Its error then appears within 10 s of a start."""

_RENEW_AT: Final = 0.5
"""Part of a token's lifetime after which it is renewed. The endpoint may then be down until the session of a
connection is renewed, after 90 % of the lifetime."""

_TAKEN_AT: Final = 0.8
"""Part of a token's lifetime after which librdkafka takes a new one. A check each second finds out."""

_AFTER_RENEWAL_S: Final = 0.2
"""Seconds after the next request to the endpoint at which librdkafka should take the new token."""

_FIRST_RETRY_S: Final = 1.0
_LAST_RETRY_S: Final = 5.0
"""Seconds between two failed requests. They double from the first value to the last one."""

_SAME_TEXT_S: Final = 60.0
"""Seconds between two log lines about the same failure."""

_MAX_BODY: Final = 1 << 20
"""Bytes of a response that are read. A token has a few thousand."""

_MAX_LIFETIME_S: Final = 366 * 86_400.0
_TOKEN: Final = re.compile("[!-~]+")


@dataclass(frozen=True)
class OAuthClient:
    """A client of a token endpoint (grant type *client credentials* of RFC 6749).

    Attributes:
        token_url: URL of the token endpoint.
        client_id: Id of this client.
        secret: Returns the client's secret. It is called for each request, so its file may be rotated.
        scope: Scope to request, if any.
        ca_file: Certificates that signed the endpoint's (PEM); ``None``: those of the system.
    """

    token_url: str
    client_id: str
    secret: Callable[[], str] = field(repr=False)
    scope: str | None = None
    ca_file: Path | None = None


class Token(NamedTuple):
    """A token, and when it expires in seconds since the Unix epoch."""

    value: str
    expires_at: float


class TokenProvider:
    """Provides a valid token to any thread.

    Args:
        client: The client of the token endpoint.

    Raises:
        SettingsError: The file of certificates cannot be used.
    """

    def __init__(self, client: OAuthClient) -> None:
        self._client = client
        self._opener = urllib.request.build_opener(
            _NoRedirects, urllib.request.HTTPSHandler(context=_context(client.ca_file))
        )
        self._throttle = LogThrottle(_SAME_TEXT_S)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._token: Token | None = None
        self._failure: str | None = None
        self._failures = 0
        self._next_request_at = 0.0
        """Since the Unix epoch, s."""

    def get(self) -> Token:
        """Return a valid token. Wait for one only if there is none, for a few seconds.

        Raises:
            Unavailable: There is none. The text states why, and what to do.
        """
        with self._changed:
            self._ensure_running()
            self._changed.wait_for(lambda: self._valid() or self._failure, _WAIT_S)
            if (token := self._valid()) is not None:
                return token
            reason = self._failure or f"{self._client.token_url} has not answered in {_WAIT_S:g} s"
        raise Unavailable(f"no token for Kafka: {reason}")

    def for_librdkafka(self, _config: str) -> Token:
        """Return a token, and an expiry: librdkafka's callback ``oauth_cb``.

        librdkafka takes the next token when most of the time until the expiry is over. It renews a session
        of a connection when most of the token's real lifetime is over, and then needs a new token. With the
        old one, the next session would end within the second in which brokers refuse to renew it again. So
        the expiry is earlier than the token's, and librdkafka takes each token soon after its renewal.
        """
        token, now = self.get(), time.time()
        wait_s = max(self._next_request_at - now, 0.0) + _AFTER_RENEWAL_S
        return Token(token.value, min(token.expires_at, now + wait_s / _TAKEN_AT))

    def _valid(self) -> Token | None:
        token = self._token
        return token if token is not None and token.expires_at > time.time() else None

    def _ensure_running(self) -> None:
        # A forked process has no thread of its parent's.
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(
                target=_keep_renewing, args=(weakref.ref(self),), name="stoplog-tokens", daemon=True
            )
            self._thread.start()

    def renew(self) -> float:
        """Request a new token. Return the seconds until the next request."""
        try:
            token, lifetime_s = self._request()
        except _NoToken as exc:
            retry_s = min(_FIRST_RETRY_S * 2.0**self._failures, _LAST_RETRY_S)
            self._failures += 1
            self._publish(self._token, str(exc), retry_s)
            if (suppressed := self._throttle.admit(str(exc))) is not None:
                _log.warning("no new token for Kafka: %s%s", exc, suppressed)
            return retry_s
        if self._failures:
            self._failures = 0
            _log.warning("%s issues tokens for Kafka again", self._client.token_url)
        wait_s = lifetime_s * _RENEW_AT
        self._publish(token, None, wait_s)
        return wait_s

    def _publish(self, token: Token | None, failure: str | None, wait_s: float) -> None:
        with self._changed:
            self._token, self._failure = token, failure
            self._next_request_at = time.time() + wait_s
            self._changed.notify_all()

    def _request(self) -> tuple[Token, float]:
        """Return a new token and its lifetime in seconds.

        Raises:
            _NoToken: There is none. The text never contains the endpoint's response or the secret.
        """
        began, url = time.time(), self._client.token_url
        try:
            with self._opener.open(self._new_request(), timeout=_REQUEST_S) as response:
                value, lifetime_s = parse_token_response(response.read(_MAX_BODY))
        except urllib.error.HTTPError as exc:
            with exc:
                raise _NoToken(f"{url} answered {exc.code} {exc.reason}: {_remedy(exc)}") from None
        except (OSError, HTTPException) as exc:
            reason = exc.reason if isinstance(exc, urllib.error.URLError) else exc
            raise _NoToken(
                f"{url} does not answer ({reason}): check STOPLOG_KAFKA_OAUTH_TOKEN_URL, and "
                f"STOPLOG_KAFKA_OAUTH_CA_FILE if its certificate is not trusted"
            ) from None
        except ValueError:
            raise _NoToken(
                f"the response of {url} has no access_token with expires_in: check that "
                f"STOPLOG_KAFKA_OAUTH_TOKEN_URL is the URL of a token endpoint"
            ) from None
        return Token(value, began + lifetime_s), lifetime_s

    def _new_request(self) -> urllib.request.Request:
        client = self._client
        try:
            secret = client.secret()
        except StoplogError as exc:
            raise _NoToken(str(exc)) from None
        form = {"grant_type": "client_credentials", **({"scope": client.scope} if client.scope else {})}
        # RFC 6749, section 2.3.1: both parts are form-encoded first.
        user, password = (urllib.parse.quote_plus(part) for part in (client.client_id, secret))
        basic = base64.b64encode(f"{user}:{password}".encode()).decode()
        return urllib.request.Request(
            client.token_url,
            data=urllib.parse.urlencode(form).encode(),
            headers={"Authorization": f"Basic {basic}", "Accept": "application/json"},
        )


def parse_token_response(data: bytes) -> tuple[str, float]:
    """Return the token in the body of a token endpoint's response, and its lifetime in seconds.

    Raises:
        ValueError: The body has no ``access_token`` of visible ASCII characters, or no positive
            ``expires_in``. The text does not contain the body.
    """
    try:
        body = json.loads(data)
        token, lifetime_s = body["access_token"], float(body["expires_in"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as exc:
        raise ValueError("no JSON object with access_token and expires_in") from exc
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise ValueError("access_token is not a token")
    if not 0 < lifetime_s <= _MAX_LIFETIME_S:
        raise ValueError("expires_in is out of bounds")
    return token, lifetime_s


class _NoToken(Exception):
    """The token endpoint has issued no token; the text states why, and what to do."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects, which would take the secret to another server."""

    def redirect_request(self, *_args: Any) -> None:
        """Follow none."""


def _keep_renewing(provider_ref: weakref.ref[TokenProvider]) -> None:
    """Renew the token for as long as its provider is used."""
    while (provider := provider_ref()) is not None:
        wait_s = provider.renew()
        del provider
        time.sleep(wait_s)


def _context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as exc:
        raise SettingsError(
            f"STOPLOG_KAFKA_OAUTH_CA_FILE={ca_file} cannot be used ({exc}): set the path of a PEM file with "
            f"the certificates of the authority that signed the token endpoint's certificate"
        ) from None


def _remedy(error: urllib.error.HTTPError) -> str:
    if error.code in (400, 401, 403):
        return (
            "check STOPLOG_KAFKA_OAUTH_CLIENT_ID, STOPLOG_KAFKA_OAUTH_CLIENT_SECRET_FILE and "
            "STOPLOG_KAFKA_OAUTH_SCOPE"
        )
    return "check STOPLOG_KAFKA_OAUTH_TOKEN_URL, and the state of the token endpoint"
