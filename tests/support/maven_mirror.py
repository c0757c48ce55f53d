"""A Maven repository on this machine, over HTTP or over HTTPS with a CA of its own."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Final

from tests.support.programs import path_of

_POM: Final = """<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion>
<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>
</project>
"""


def add_artifact(folder: Path, coordinate: str) -> None:
    """Put an artifact without dependencies into the repository *folder*: its pom, and a jar that is none."""
    group, artifact, version = coordinate.split(":")
    place = folder.joinpath(*group.split("."), artifact, version)
    place.mkdir(parents=True)
    (place / f"{artifact}-{version}.pom").write_text(
        _POM.format(group=group, artifact=artifact, version=version)
    )
    (place / f"{artifact}-{version}.jar").write_text(f"jar of {coordinate}")


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing into the output of a test."""


@contextmanager
def serving_repository(folder: Path, certificate: Path | None = None) -> Iterator[str]:
    """Serve *folder* and return its URL; over HTTPS if *certificate* (with its key) is given."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
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
