"""A Maven repository on this machine, over HTTP or over HTTPS with a CA of its own."""

from __future__ import annotations

import hashlib
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from stoplog_gateway.local.kafka_jars import Jar

from tests.support.programs import path_of


def add_jar(folder: Path, path: str) -> Jar:
    """Put a file in the place of a jar into the repository *folder*; return its line of the list of jars."""
    content = f"jar of {path}".encode()
    file = folder / path
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return Jar(path, len(content), hashlib.sha256(content).hexdigest())


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing into the output of a test."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Print nothing if a client does not trust the certificate."""


@contextmanager
def serving_repository(folder: Path, certificate: Path | None = None) -> Iterator[str]:
    """Serve *folder* and return its URL; over HTTPS if *certificate* (with its key) is given."""
    with _Server(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The thread of each connection does the handshake: a client may start several connections first.
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"{'http' if certificate is None else 'https'}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def create_ca(folder: Path) -> tuple[Path, Path]:
    """Create a certificate authority in *folder*, and a certificate of 127.0.0.1 that it signs.

    A test that calls this is marked with ``needs("openssl")``.

    Returns:
        The CA's certificate, and the server's certificate with its key.
    """
    ca, key, server = folder / "ca.pem", folder / "ca.key", folder / "server.pem"
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    _openssl(*new, "-subj", "/CN=Test CA", "-keyout", str(key), "-out", str(ca))
    request, own_key, names = folder / "server.csr", folder / "server.key", folder / "names"
    names.write_text("subjectAltName=IP:127.0.0.1\n")
    _openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=mirror"),
        *("-keyout", str(own_key), "-out", str(request)),
    )
    _openssl(
        *("x509", "-req", "-in", str(request), "-CA", str(ca), "-CAkey", str(key), "-CAcreateserial"),
        *("-days", "2", "-extfile", str(names), "-out", str(server)),
    )
    server.write_text(server.read_text() + own_key.read_text())
    return ca, server


def _openssl(*arguments: str) -> None:
    done = subprocess.run([path_of("openssl"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
