from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Final

import pytest
import trustme
from pydantic import ValidationError
from stoplog_gateway.cli.app import app
from stoplog_gateway.settings import GatewaySettings
from stoplog_worker.settings import Settings as WorkerSettings
from typer.testing import CliRunner

from stoplog.client.settings import Settings, read_settings
from stoplog.errors import SettingsError
from stoplog.kafka.settings import KafkaSettings

SECRET = "correct-horse"
SASL: Final[dict[str, Any]] = {"kafka": "k:1", "kafka_security_protocol": "SASL_SSL"}
SCRAM: Final[dict[str, Any]] = {**SASL, "kafka_sasl_mechanism": "SCRAM-SHA-512", "kafka_username": "gateway"}
OAUTH: Final[dict[str, Any]] = {
    **SASL,
    "kafka_sasl_mechanism": "OAUTHBEARER",
    "kafka_oauth_token_url": "https://login.example/token",
    "kafka_oauth_client_id": "gateway",
}


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("STOPLOG_")]:
        monkeypatch.delenv(name)


def config(**fields: Any) -> dict[str, Any]:
    return KafkaSettings(**fields).connection.client_config()


def test_connection_without_security_has_an_address_only() -> None:
    assert config(kafka="k:1").keys() == {"bootstrap.servers", "error_cb"}


@pytest.mark.parametrize("kind", [Settings, GatewaySettings, WorkerSettings])
def test_every_part_reads_the_same_settings(
    kind: type[KafkaSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SCRAM, "kafka_password": SECRET}.items():
        monkeypatch.setenv(f"STOPLOG_{name.upper()}", value)
    found = kind().connection.client_config()
    assert found["security.protocol"] == "SASL_SSL"
    assert found["sasl.mechanism"] == "SCRAM-SHA-512"
    assert (found["sasl.username"], found["sasl.password"]) == ("gateway", SECRET)


def test_password_in_a_file_is_read_without_its_line_end(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    assert config(**SCRAM, kafka_password_file=file)["sasl.password"] == SECRET


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"kafka_security_protocol": "SSL"}, "set STOPLOG_KAFKA to"),
        ({**SASL}, "set STOPLOG_KAFKA_SASL_MECHANISM"),
        ({"kafka": "k:1", "kafka_ca_file": "ca.pem"}, "KAFKA_CA_FILE is set, but .* to SSL or SASL_SSL"),
        (
            {"kafka": "k:1", "kafka_username": "u"},
            "KAFKA_USERNAME is set, but .*PROTOCOL to SASL_SSL",
        ),
        ({**SCRAM}, "needs STOPLOG_KAFKA_PASSWORD_FILE: set it"),
        ({**SASL, "kafka_sasl_mechanism": "PLAIN"}, "needs STOPLOG_KAFKA_USERNAME: set it"),
        ({**OAUTH}, "needs STOPLOG_KAFKA_OAUTH_CLIENT_SECRET_FILE: set it"),
        ({**SCRAM, "kafka_password": SECRET, "kafka_password_file": "f"}, "are both set: unset one"),
        ({**SCRAM, "kafka_password_file": "/nowhere"}, "PASSWORD_FILE=/nowhere cannot be read .No such file"),
        ({**SCRAM, "kafka_password_file": os.devnull}, "PASSWORD_FILE=/dev/null is empty"),
        (
            {**SASL, "kafka_ca_file": "/nowhere", **SCRAM, "kafka_password": "x"},
            "KAFKA_CA_FILE=/nowhere cannot",
        ),
        ({"kafka": "k:1", "kafka_security_protocol": "SSL", "kafka_key_file": "k"}, "set both, or neither"),
        (
            {**OAUTH, "kafka_oauth_client_secret": "x", "kafka_oauth_ca_file": "/no"},
            "OAUTH_CA_FILE=/no cannot",
        ),
    ],
)
def test_unusable_setting_names_itself_and_the_remedy(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        read_settings(**fields)


@pytest.mark.parametrize("url", ["http://login.example/token", "ftp://x", "http://127.0.0.1.evil.example/"])
def test_token_url_that_would_send_the_secret_unencrypted_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="would send the secret unencrypted"):
        KafkaSettings(**{**OAUTH, "kafka_oauth_token_url": url})


def test_token_url_on_loopback_needs_no_encryption() -> None:
    url = "http://127.0.0.1:8080/token"
    KafkaSettings(**{**OAUTH, "kafka_oauth_token_url": url, "kafka_oauth_client_secret": SECRET})


def test_client_certificate_that_is_none_names_both_settings(tmp_path: Path) -> None:
    file = tmp_path / "cert.pem"
    file.write_text("nothing")
    fields: dict[str, Any] = {
        "kafka": "k:1",
        "kafka_security_protocol": "SSL",
        "kafka_cert_file": file,
        "kafka_key_file": file,
    }
    with pytest.raises(SettingsError, match=f"STOPLOG_KAFKA_CERT_FILE={file} and STOPLOG_KAFKA_KEY_FILE"):
        KafkaSettings(**fields)


def test_files_of_certificates_reach_both_kinds_of_clients(tmp_path: Path) -> None:
    authority = trustme.CA()
    chain, ca = tmp_path / "chain.pem", tmp_path / "ca.pem"
    authority.issue_cert("gateway.test").private_key_and_cert_chain_pem.write_to_path(str(chain))
    authority.cert_pem.write_to_path(str(ca))
    settings = KafkaSettings(
        kafka="k:1",
        kafka_security_protocol="SSL",
        kafka_ca_file=ca,
        kafka_cert_file=chain,
        kafka_key_file=chain,
    )
    found = settings.connection.client_config()
    assert found["ssl.ca.location"] == str(ca)
    assert found["ssl.certificate.location"] == found["ssl.key.location"] == str(chain)
    assert settings.connection.ssl_context is not None
    assert len(settings.connection.ssl_context.get_ca_certs()) == 1


def test_secrets_are_in_no_representation_and_no_error() -> None:
    fields: dict[str, Any] = {
        **SCRAM,
        "kafka_password": SECRET,
        "kafka_key_password": SECRET,
        "kafka_oauth_client_secret": SECRET,
    }
    settings = KafkaSettings(**fields)
    shown = [repr(settings), str(settings), repr(settings.connection), repr(settings.connection.security)]
    oauth = KafkaSettings(**OAUTH, kafka_oauth_client_secret=SECRET).connection
    shown += [repr(oauth.security), repr(oauth.tokens), str(oauth.tokens.__dict__)]
    with pytest.raises(ValidationError) as wrong:
        KafkaSettings(**{**fields, "broker_port": 0})
    assert not [text for text in [*shown, str(wrong.value)] if SECRET in text]


@pytest.mark.parametrize(
    "arguments", [["topics", "verify"], ["topics", "verify", "--help"], ["gateway", "--help"]]
)
def test_secrets_are_in_no_output_of_a_command(arguments: list[str]) -> None:
    environment = {
        "STOPLOG_KAFKA_PASSWORD": SECRET,
        "STOPLOG_KAFKA_SECURITY_PROTOCOL": "WRONG",
        "STOPLOG_KAFKA_USERNAME": "gateway",
    }
    done = CliRunner().invoke(app, arguments, env=environment)
    assert SECRET not in done.output
    if "--help" not in arguments:
        assert done.exit_code == 2
        assert "STOPLOG_KAFKA_SECURITY_PROTOCOL='WRONG'" in done.output


def test_unreadable_secret_names_its_setting(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"\xff\xfe")
    file.chmod(stat.S_IRUSR)
    with pytest.raises(SettingsError, match=f"STOPLOG_KAFKA_PASSWORD_FILE={file} cannot be read"):
        KafkaSettings(**SCRAM, kafka_password_file=file)
