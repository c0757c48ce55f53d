from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import pytest
import trustme
from stoplog_gateway.ports import free_port

from stoplog.kafka.connection_probe import probe

AUTHORITY = trustme.CA()


def client_context(authority: trustme.CA = AUTHORITY) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve one connection on a port of loopback, whose address is yielded."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with suppress(OSError), server.accept()[0] as connection:
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


@contextmanager
def tls_listener(*names: str, expired: bool = False) -> Iterator[str]:
    ends = datetime.now(UTC) - timedelta(days=1) if expired else None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(*(names or ("127.0.0.1",)), not_after=ends).configure_cert(context)

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as encrypted:
            encrypted.recv(1)

    with listener(serve) as address:
        yield address


def closes_what_is_no_kafka(connection: socket.socket) -> None:
    """Behave as a plaintext listener of Kafka: read a length that is too large, and close."""
    connection.recv(4)


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
    with listener(closes_what_is_no_kafka) as address:
        text = probe(address, protocol, client_context())
    assert text is not None
    assert text.endswith(f"or STOPLOG_KAFKA_SECURITY_PROTOCOL to {right}")


def test_listener_without_tls_is_no_problem_without_tls() -> None:
    with listener(closes_what_is_no_kafka) as address:
        assert probe(address, "PLAINTEXT", None) is None


def test_refused_connection_names_the_server_unless_another_one_answers() -> None:
    nobody = f"127.0.0.1:{free_port()}"
    text = probe(nobody, "SSL", client_context())
    assert text is not None
    assert text.startswith(f"{nobody} cannot be connected to (Connection refused): start Kafka there")
    with tls_listener() as address:
        assert probe(f"{nobody}, {address}", "SSL", client_context()) is None
