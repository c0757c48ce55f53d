"""Certificates in files, signed by a CA of their own."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme


class Certificates:
    """The files of a CA in *folder*: ``ca.pem``, ``server.pem`` with ``server.key``, and the client's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca_file = folder / "ca.pem"
        self.cert_file, self.key_file = folder / "server.pem", folder / "server.key"
        self.client_cert_file, self.client_key_file = folder / "client.pem", folder / "client.key"
        self.renew()

    def renew(self) -> None:
        """Write new files, signed by a new CA."""
        self.ca = trustme.CA()
        self.ca.cert_pem.write_to_path(self.ca_file)
        _write(self.ca.issue_cert("localhost", "127.0.0.1"), self.cert_file, self.key_file)
        _write(self.ca.issue_cert("client@example.com"), self.client_cert_file, self.client_key_file)

    def client_context(self, *, with_certificate: bool = False) -> ssl.SSLContext:
        """Return TLS of a client that trusts the current CA."""
        context = ssl.create_default_context(cafile=self.ca_file)
        if with_certificate:
            context.load_cert_chain(self.client_cert_file, self.client_key_file)
        return context


def _write(issued: trustme.LeafCert, cert_file: Path, key_file: Path) -> None:
    cert_file.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key_file)
