from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from stoplog_gateway.access.tls import TlsFiles
from stoplog_gateway.access.watched_files import FileWatcher
from stoplog_gateway.settings import GatewaySettings

from stoplog.errors import SettingsError
from tests.support.certificates import Certificates


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def test_tls_without_settings_is_off() -> None:
    assert TlsFiles.of(GatewaySettings(), FileWatcher()) is None
    assert GatewaySettings().url_scheme == "http"


@pytest.mark.parametrize("given", [{"cert_file"}, {"key_file"}, {"ca_file"}, {"ca_file", "key_file"}])
def test_tls_without_certificate_and_key_names_both_settings(files: Certificates, given: set[str]) -> None:
    settings = GatewaySettings(
        tls_cert_file=files.cert_file if "cert_file" in given else None,
        tls_key_file=files.key_file if "key_file" in given else None,
        tls_client_ca_file=files.ca_file if "ca_file" in given else None,
    )
    with pytest.raises(SettingsError, match="STOPLOG_TLS_CERT_FILE and STOPLOG_TLS_KEY_FILE"):
        TlsFiles.of(settings, FileWatcher())


def test_key_with_a_passphrase_is_refused_without_a_prompt(files: Certificates) -> None:
    key = load_pem_private_key(files.key_file.read_bytes(), None)
    encrypted = BestAvailableEncryption(b"secret")
    files.key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encrypted))
    with pytest.raises(SettingsError, match=f"{files.key_file}: the key has a passphrase"):
        TlsFiles(files.cert_file, files.key_file, None, FileWatcher())


@pytest.mark.parametrize("name", ["cert_file", "key_file", "ca_file"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_unusable_file_at_the_start_is_named(files: Certificates, name: str, content: bytes | None) -> None:
    path: Path = getattr(files, name)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=str(path)):
        TlsFiles(files.cert_file, files.key_file, files.ca_file, FileWatcher())
