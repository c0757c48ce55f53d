from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from stoplog_gateway.ports import free_port

from stoplog.kafka import connection_probe
from stoplog.kafka.connection_probe import probe

AUTHORITY = trustme.CA()
NO_SASL = 34
OTHER_MECHANISM = 33


def client_context(authority: trustme.CA = AUTHORITY) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve connections, one after the other, on a port of loopback, whose address is yielded."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ending = False

        def accept() -> None:
            while not ending:
                with suppress(OSError), server.accept()[0] as connection:
                    if not ending:
                        serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        address = server.getsockname()
        yield f"127.0.0.1:{address[1]}"
        ending = True
        socket.create_connection(address).close()
        thread.join()


def answering(code: int) -> Callable[[socket.socket], None]:
    """Return what behaves as a listener of Kafka that answers SaslHandshake with *code*."""

    def serve(connection: socket.socket) -> None:
        size = int.from_bytes(connection.recv(4))
        if size < 1_000:
            connection.recv(size)
            connection.sendall(struct.pack(">iihi", 10, 0, code, 0))

    return serve


@contextmanager
def tls_listener(*names: str, expired: bool = False, code: int = NO_SASL) -> Iterator[str]:
    ends = datetime.now(UTC) - timedelta(days=1) if expired else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(*(names or ("127.0.0.1",)), not_after=ends).configure_cert(context)

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as encrypted:
            answering(code)(encrypted)

    with listener(serve) as address:
        yield address


def test_tls_listener_with_a_trusted_certificate_is_no_problem() -> None:
    with tls_listener() as address:
        assert probe(address, "SSL", client_context()) is None


@pytest.mark.parametrize(
    ("names", "expired", "text"),
    [
        ((), True, r"is not valid now \(certificate has expired\): renew it"),
        (("elsewhere.test",), False, r"is not for 127\.0\.0\.1 .*: set STOPLOG_KAFKA to a name in the"),
    ],
)
def test_unusable_certificate_is_named(names: tuple[str, ...], expired: bool, text: str) -> None:
    with tls_listener(*names, expired=expired) as address, pytest.raises(AssertionError, match=text):
        raise AssertionError(probe(address, "SSL", client_context()))


def test_unknown_authority_names_the_setting_of_its_file() -> None:
    with tls_listener() as address:
        text = probe(address, "SSL", client_context(trustme.CA()))
    assert text is not None
    assert "is not trusted (unable to get local issuer certificate): set STOPLOG_KAFKA_CA_FILE" in text


@pytest.mark.parametrize(("protocol", "right"), [("PLAINTEXT", "SSL"), ("SASL_PLAINTEXT", "SASL_SSL")])
def test_listener_that_expects_tls_is_recognized(protocol: str, right: str) -> None:
    with tls_listener() as address:
        text = probe(address, protocol, None)
    assert text is not None
    assert f"set STOPLOG_KAFKA_SECURITY_PROTOCOL to {right}," in text


@pytest.mark.parametrize(("protocol", "right"), [("SSL", "PLAINTEXT"), ("SASL_SSL", "SASL_PLAINTEXT")])
def test_listener_without_tls_is_recognized(protocol: str, right: str) -> None:
    with listener(answering(NO_SASL)) as address:
        text = probe(address, protocol, client_context())
    assert text is not None
    assert text.endswith(f"or STOPLOG_KAFKA_SECURITY_PROTOCOL to {right}")


@pytest.mark.parametrize("code", [0, OTHER_MECHANISM])
@pytest.mark.parametrize("encrypted", [True, False])
def test_protocol_has_to_agree_with_the_listener_about_sasl(encrypted: bool, code: int) -> None:
    kind, context = ("SSL", client_context()) if encrypted else ("PLAINTEXT", None)

    def serving(code: int) -> AbstractContextManager[str]:
        return tls_listener(code=code) if encrypted else listener(answering(code))

    with serving(code) as address:
        assert probe(address, f"SASL_{kind}", context) is None
        text = probe(address, kind, context)
    assert text is not None
    assert text.startswith(f"the listener needs SASL: set STOPLOG_KAFKA_SECURITY_PROTOCOL to SASL_{kind}, ")
    with serving(NO_SASL) as address:
        assert probe(address, kind, context) is None
        text = probe(address, f"SASL_{kind}", context)
    assert text == f"the listener does not use SASL: set STOPLOG_KAFKA_SECURITY_PROTOCOL to {kind}"


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL"])
def test_broker_that_closes_connections_or_is_silent_has_not_proven_a_wrong_protocol(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_probe, "_TIMEOUT_S", 0.1)
    context = client_context() if protocol.endswith("SSL") else None
    with listener(lambda connection: None) as address:
        assert probe(address, protocol, context) is None
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        assert probe(f"127.0.0.1:{frozen.getsockname()[1]}", protocol, context) is None


def test_refused_connection_names_the_server_unless_another_one_answers() -> None:
    nobody = f"127.0.0.1:{free_port()}"
    text = probe(nobody, "SSL", client_context())
    assert text is not None
    assert text.startswith(f"{nobody} cannot be connected to (Connection refused): start Kafka there")
    with tls_listener() as address:
        assert probe(f"{nobody}, {address}", "SSL", client_context()) is None
