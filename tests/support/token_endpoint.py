"""A token endpoint for OAUTHBEARER: HTTPS, client credentials, tokens signed with RS256."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote_plus

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256


class TokenEndpoint:
    """Issues tokens to clients that know their secret.

    Args:
        secrets: The secret of each client id.
        chain: File with the private key and certificate of the server (PEM); ``None``: no TLS.

    Attributes:
        lifetime_s: Lifetime of the tokens.
        down: Answer 503 instead.
        requests: The form of each request, with the id of its client.
        issued: All tokens.
    """

    def __init__(self, secrets: dict[str, str], chain: Path | None = None) -> None:
        self.secrets = secrets
        self.lifetime_s = 3_600.0
        self.down = False
        self.requests: list[dict[str, str]] = []
        self.issued: list[str] = []
        self._key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                form = self.rfile.read(int(self.headers["Content-Length"])).decode()
                status, body = endpoint.answer(self.headers.get("Authorization", ""), form)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if chain is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(chain)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "http" if chain is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, authorization: str, form: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the body for a request."""
        if self.down:
            return 503, {}
        basic = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        client, secret = (unquote_plus(part) for part in basic.split(":", 1))
        fields = {name: values[0] for name, values in parse_qs(form).items()}
        self.requests.append({"client": client, **fields})
        if self.secrets.get(client) != secret:
            return 401, {"error": "invalid_client", "error_description": f"not {secret}"}
        return 200, {
            "access_token": self.token(client),
            "expires_in": self.lifetime_s,
            "token_type": "Bearer",
        }

    def token(self, subject: str) -> str:
        """Return a signed token for *subject*."""
        now = time.time()
        claims = {
            "sub": subject,
            "iat": int(now),
            "exp": int(now + self.lifetime_s),
            "aud": "kafka",
            "scope": "kafka",
        }
        signed = f"{_encoded({'alg': 'RS256', 'typ': 'JWT', 'kid': 'test'})}.{_encoded(claims)}"
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), SHA256())
        self.issued.append(f"{signed}.{_base64(signature)}")
        return self.issued[-1]

    def jwks(self) -> str:
        """Return the public key as a JSON Web Key Set."""
        numbers = self._key.public_key().public_numbers()
        modulus = numbers.n.to_bytes(256, "big")
        key = {
            "kty": "RSA",
            "kid": "test",
            "use": "sig",
            "alg": "RS256",
            "n": _base64(modulus),
            "e": "AQAB",
        }
        return json.dumps({"keys": [key]})


def _encoded(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
