"""The requests that `stoplog up` suggests, with and without TLS. End-to-end tests run them."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from stoplog_gateway.cli.first_requests import first_requests
from stoplog_gateway.settings import GatewaySettings

CURL = """-H 'Content-Type: application/json' -d '{"client_id": "alice"}'"""

Serve = Callable[[Path, Path], int]


@contextmanager
def tls_server(cert_file: Path, key_file: Path) -> Iterator[int]:
    """Answer TLS handshakes on 127.0.0.1; yield the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert_file, key_file)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with suppress(OSError):  # until the listener is shut down
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError), context.wrap_socket(connection, server_side=True):
                        pass

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server with a certificate and its key; it ends with the test."""
    with ExitStack() as stack:
        yield lambda cert_file, key_file: stack.enter_context(tls_server(cert_file, key_file))


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STOPLOG_CA_FILE", "STOPLOG_CLIENT_CERT_FILE", "STOPLOG_CLIENT_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)


def issued_for(folder: Path, *names: str) -> tuple[Path, Path, Path]:
    """Write a certificate for *names*, its key, and its CA; return the files."""
    ca = trustme.CA()
    cert = ca.issue_cert(*names)
    files = folder / "server.pem", folder / "server.key", folder / "ca.pem"
    cert.cert_chain_pems[0].write_to_path(files[0])
    cert.private_key_pem.write_to_path(files[1])
    ca.cert_pem.write_to_path(files[2])
    return files


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for ``localhost`` that signs itself, and its key; return the files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "self.pem", folder / "self.key"
    cert_file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    encoding, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(encoding, pkcs8, serialization.NoEncryption()))
    return cert_file, key_file


def test_requests_on_the_default_address_need_no_options() -> None:
    urls = ["http://127.0.0.1:8080", "http://127.0.0.1:8081"]
    assert list(first_requests(urls, GatewaySettings())) == [
        "stoplog is ready: http://127.0.0.1:8080",
        "  stoplog limits set alice 5/minute",
        f"  curl http://127.0.0.1:8080/v1/check {CURL}",
        "more gateways: http://127.0.0.1:8081",
    ]


def test_requests_elsewhere_name_url_and_token(tmp_path: Path) -> None:
    settings = GatewaySettings(home=tmp_path / "my home", check_token="required")
    _, put, post = first_requests(["http://127.0.0.1:81"], settings)
    token = f"'{tmp_path}/my home/token'"
    assert put == f"  stoplog limits set alice 5/minute --url http://127.0.0.1:81 --token-file {token}"
    assert post == f'  curl http://127.0.0.1:81/v1/check -H "Authorization: Bearer $(cat {token})" {CURL}'


def test_requests_do_not_name_the_token_of_up_if_the_operator_has_a_tokens_file(tmp_path: Path) -> None:
    settings = GatewaySettings(home=tmp_path, tokens_file=tmp_path / "tokens", check_token="required")
    assert str(tmp_path) not in "".join(first_requests(["http://127.0.0.1:81"], settings))


def test_requests_with_tls_name_the_ca_file_and_a_host_of_the_certificate(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert_file, key_file, ca_file = issued_for(tmp_path, "localhost")
    monkeypatch.setenv("STOPLOG_CA_FILE", str(ca_file))
    port = serve(cert_file, key_file)
    settings = GatewaySettings(tls_cert_file=cert_file, tls_key_file=key_file)
    _, put, post = first_requests([f"https://127.0.0.1:{port}"], settings)
    assert put == f"  stoplog limits set alice 5/minute --cacert {ca_file} --url https://localhost:{port}"
    assert post == f"  curl https://localhost:{port}/v1/check --cacert {ca_file} {CURL}"


def test_requests_with_a_self_signed_certificate_name_it_as_its_ca(tmp_path: Path, serve: Serve) -> None:
    cert_file, key_file = self_signed(tmp_path)
    port = serve(cert_file, key_file)
    settings = GatewaySettings(tls_cert_file=cert_file, tls_key_file=key_file)
    _, _, post = first_requests([f"https://127.0.0.1:{port}"], settings)
    assert post == f"  curl https://localhost:{port}/v1/check --cacert {cert_file} {CURL}"


def test_requests_with_a_certificate_for_another_host_come_with_a_remedy(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    cert_file, key_file, ca_file = issued_for(tmp_path, "limits.example.com")
    monkeypatch.setenv("STOPLOG_CA_FILE", str(ca_file))
    url = f"https://127.0.0.1:{serve(cert_file, key_file)}"
    settings = GatewaySettings(tls_cert_file=cert_file, tls_key_file=key_file)
    _, _, _, remedy = first_requests([url], settings)
    assert "use a host that it names instead of 127.0.0.1, and set STOPLOG_CA_FILE" in remedy
