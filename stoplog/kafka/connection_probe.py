"""Find out why a broker cannot be used, by connecting to it as a Kafka client would.

librdkafka states the cause of a failed TLS handshake in general terms, and nothing at all if a listener that
expects TLS closes a connection without it. A connection of Python's states the cause exactly.
"""

from __future__ import annotations

import re
import socket
import ssl
from contextlib import suppress
from typing import Final

_TIMEOUT_S: Final = 1.5
"""Seconds for each step. With two servers that do not answer, an error still appears within 10 s."""

_MAX_SERVERS: Final = 2
"""Bootstrap servers that are tried, until one can be connected to."""

_DEFAULT_PORT: Final = 9092

_EXPIRED: Final = (9, 10)
_WRONG_HOST: Final = (62, 64)
"""OpenSSL's codes: ``X509_V_ERR_CERT_NOT_YET_VALID``, ``..._HAS_EXPIRED``, ``..._HOSTNAME_MISMATCH`` and
``..._IP_ADDRESS_MISMATCH``. All others concern the authority."""

_PROTOCOL: Final = "STOPLOG_KAFKA_SECURITY_PROTOCOL"


def probe(bootstrap: str, protocol: str, context: ssl.SSLContext | None) -> str | None:
    """Return why no client can use these servers, with the remedy; ``None`` if no cause is found.

    Blocks for some seconds at most.

    Args:
        bootstrap: Bootstrap servers.
        protocol: Kafka's ``security.protocol``.
        context: The context for TLS; ``None`` without TLS.
    """
    reason = None
    for server in bootstrap.split(",")[:_MAX_SERVERS]:
        host, port = _address(server.strip())
        try:
            with socket.create_connection((host, port), _TIMEOUT_S) as sock:
                if context is None:
                    return _expects_tls(sock, protocol)
                return _handshake(sock, context, host, protocol)
        except OSError as exc:
            reason = reason or (
                f"{host}:{port} cannot be connected to ({exc.strerror or exc}): start Kafka there (`stoplog "
                f"broker` starts one on this machine), or set STOPLOG_KAFKA to where it runs"
            )
    return reason


def _address(server: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\w+://)?\[?(.*?)]?(?::(\d+))?", server)
    assert match is not None  # the pattern matches any text
    return match[1], int(match[2] or _DEFAULT_PORT)


def _expects_tls(sock: socket.socket, protocol: str) -> str | None:
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname = False
    anyone.verify_mode = ssl.CERT_NONE  # nothing is sent: only the kind of the listener matters
    with suppress(OSError), anyone.wrap_socket(sock):
        encrypted = "SASL_SSL" if protocol.startswith("SASL") else "SSL"
        return (
            f"the listener expects TLS, and {_PROTOCOL}={protocol} does not use it: set {_PROTOCOL} to "
            f"{encrypted}, and STOPLOG_KAFKA_CA_FILE if its authority is not public"
        )
    return None


def _handshake(sock: socket.socket, context: ssl.SSLContext, host: str, protocol: str) -> str | None:
    try:
        with context.wrap_socket(sock, server_hostname=host):
            return None
    except ssl.SSLCertVerificationError as exc:
        return _untrusted(exc, host)
    except (ssl.SSLError, ConnectionError, TimeoutError):
        plain = "SASL_PLAINTEXT" if protocol.startswith("SASL") else "PLAINTEXT"
        return (
            f"the listener does not answer as TLS does, and {_PROTOCOL}={protocol} uses TLS: set "
            f"STOPLOG_KAFKA to a listener with TLS, or {_PROTOCOL} to {plain}"
        )


def _untrusted(error: ssl.SSLCertVerificationError, host: str) -> str:
    if error.verify_code in _EXPIRED:
        return (
            f"the broker's certificate is not valid now ({error.verify_message}): renew it, or correct this "
            f"machine's clock"
        )
    if error.verify_code in _WRONG_HOST:
        return (
            f"the broker's certificate is not for {host} ({error.verify_message}): set STOPLOG_KAFKA to a "
            f"name in the certificate, or have one issued for {host}"
        )
    return (
        f"the authority of the broker's certificate is not trusted ({error.verify_message}): set "
        f"STOPLOG_KAFKA_CA_FILE to the certificates of the authority that signed it"
    )
