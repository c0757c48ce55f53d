"""Find out why a broker cannot be used, by connecting to it as a Kafka client would.

librdkafka states the cause of a failed TLS handshake in general terms, and nothing at all if a listener that
expects TLS closes a connection without it. A connection of Python's states the cause exactly.

A broker that stops, starts or is busy also closes connections, or does not answer. So a wrong protocol is
only reported if the listener gave the answer that proves it.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
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

_SASL_HANDSHAKE: Final = struct.pack(">hhihh", 17, 1, 0, -1, 5) + b"PLAIN"
"""Kafka's request SaslHandshake: its key, version, correlation id, no client id, and a mechanism."""

_RESPONSE: Final = struct.Struct(">iih")
"""Size and correlation id of a response, and an error code."""

_USES_SASL: Final = (0, 33)
"""Error codes of a listener with SASL: it accepts the mechanism, or ``UNSUPPORTED_SASL_MECHANISM``."""

_NO_SASL: Final = 34
"""``ILLEGAL_SASL_STATE``: the error code of a listener without SASL."""


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
            return _probe_server(host, port, protocol, context)
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


def _probe_server(host: str, port: int, protocol: str, context: ssl.SSLContext | None) -> str | None:
    """Return why one server cannot be used; ``None`` if no cause is found.

    Raises:
        OSError: It cannot be connected to.
    """
    with socket.create_connection((host, port), _TIMEOUT_S) as sock:
        if context is None:
            code = _sasl_error(sock)
        else:
            try:
                with context.wrap_socket(sock, server_hostname=host) as encrypted:
                    code = _sasl_error(encrypted)
            except ssl.SSLCertVerificationError as exc:
                return _untrusted(exc, host)
            except OSError:
                code = None
    if code is not None:
        return _wrong_about_sasl(code, protocol)
    with suppress(OSError), socket.create_connection((host, port), _TIMEOUT_S) as sock:
        if context is None:
            return _expects_tls(sock, protocol)
        if _sasl_error(sock) is not None:
            plain = "SASL_PLAINTEXT" if protocol.startswith("SASL") else "PLAINTEXT"
            return (
                f"the listener does not use TLS, and {_PROTOCOL}={protocol} does: set STOPLOG_KAFKA to a "
                f"listener with TLS, or {_PROTOCOL} to {plain}"
            )
    return None


def _sasl_error(sock: socket.socket) -> int | None:
    """Ask for SASL; return the listener's error code, or ``None`` if it does not answer as Kafka does."""
    with suppress(OSError):
        sock.sendall(struct.pack(">i", len(_SASL_HANDSHAKE)) + _SASL_HANDSHAKE)
        answer = b""
        while len(answer) < _RESPONSE.size:
            if not (more := sock.recv(_RESPONSE.size - len(answer))):
                return None
            answer += more
        _, correlation, code = _RESPONSE.unpack(answer)
        if correlation == 0 and code in (*_USES_SASL, _NO_SASL):
            return int(code)
    return None


def _wrong_about_sasl(code: int, protocol: str) -> str | None:
    """Return what is wrong with *protocol* for a listener that answers *code*; ``None`` if nothing is."""
    sasl, kind = protocol.startswith("SASL"), protocol.removeprefix("SASL_")
    if code == _NO_SASL and sasl:
        return f"the listener does not use SASL: set {_PROTOCOL} to {kind}"
    if code != _NO_SASL and not sasl:
        return f"the listener needs SASL: set {_PROTOCOL} to SASL_{kind}, and STOPLOG_KAFKA_SASL_MECHANISM"
    return None


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
