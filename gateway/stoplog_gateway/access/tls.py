"""The gateway's certificate, and the CA of its clients' certificates, as they are in their files now."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final, NoReturn, Self

from stoplog.errors import SettingsError
from stoplog_gateway.access.watched_files import FileWatcher, WatchedFiles
from stoplog_gateway.settings import GatewaySettings

_ALPN: Final = ["http/1.1"]


class TlsFiles:
    """TLS for HTTP and gRPC. New files count for new connections.

    Args:
        cert_file: Certificate of the gateway in PEM, followed by intermediate ones.
        key_file: Its private key in PEM, without a passphrase.
        client_ca_file: Certificates in PEM that sign those of clients. Then each client needs one.
        watcher: Reads the files again.

    Raises:
        SettingsError: A file cannot be used.
    """

    def __init__(
        self, cert_file: Path, key_file: Path, client_ca_file: Path | None, watcher: FileWatcher
    ) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self.context: ssl.SSLContext
        """For HTTP."""
        self.pem: tuple[bytes, bytes, bytes | None]
        """Certificate, key and CA of clients, for gRPC."""
        paths = [path for path in (cert_file, key_file, client_ca_file) if path is not None]
        watcher.add(WatchedFiles("tls", paths, self._load))

    @classmethod
    def of(cls, settings: GatewaySettings, watcher: FileWatcher) -> Self | None:
        """Return TLS as *settings* state it; ``None`` without a certificate.

        Raises:
            SettingsError: A file cannot be used, or a setting needs another one.
        """
        cert, key, client_ca = settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
        if cert is None and key is None and client_ca is None:
            return None
        if cert is None or key is None:
            raise SettingsError(
                "TLS needs a certificate and its key: set both STOPLOG_TLS_CERT_FILE and STOPLOG_TLS_KEY_FILE"
            )
        return cls(cert, key, client_ca, watcher)

    @property
    def needs_client_certificate(self) -> bool:
        """Whether each client must present a certificate."""
        return self._client_ca_file is not None

    def _load(self) -> None:
        """Put the files in force.

        A new context replaces the old one as a whole. A context that is in use would keep CAs that have been
        removed from the file.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(_ALPN)
        pem = _read(self._cert_file), _read(self._key_file)
        try:
            context.load_cert_chain(self._cert_file, self._key_file, _refuse_passphrase)
        except _NeedsPassphrase:
            raise SettingsError(f"{self._key_file}: the key has a passphrase: store it without one") from None
        except OSError as exc:  # ssl.SSLError is one, too
            raise SettingsError(
                f"{self._cert_file} and {self._key_file} are no certificate and its key in PEM ({exc}): see "
                f"STOPLOG_TLS_CERT_FILE and STOPLOG_TLS_KEY_FILE"
            ) from exc
        client_ca = None
        if self._client_ca_file is not None:
            client_ca = _read(self._client_ca_file)
            try:
                context.load_verify_locations(self._client_ca_file)
            except OSError as exc:
                raise SettingsError(
                    f"{self._client_ca_file} contains no certificates in PEM ({exc}): see "
                    f"STOPLOG_TLS_CLIENT_CA_FILE"
                ) from exc
            context.verify_mode = ssl.CERT_REQUIRED
        self.context, self.pem = context, (*pem, client_ca)


class _NeedsPassphrase(Exception):
    """The key is encrypted. OpenSSL would ask for the passphrase on the terminal."""


def _refuse_passphrase() -> NoReturn:
    raise _NeedsPassphrase


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise SettingsError(
            f"{path}: cannot be read ({exc.strerror}): correct the setting STOPLOG_TLS_*_FILE that names it"
        ) from exc
