"""The settings of every Kafka client: of the SDK, the gateway, the worker and the command line."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from stoplog.errors import SettingsError
from stoplog.kafka.connection import KafkaConnection, Security
from stoplog.kafka.oauth_tokens import OAuthClient
from stoplog.secret_file import read_secret

_SAFE_URL: Final = r"https://.+|http://(localhost|127\.\d+\.\d+\.\d+|\[::1\])[:/].*"
"""URLs to which a secret may be sent: encrypted, or on this machine."""

_SECRETS: Final = ("kafka_key_password", "kafka_password", "kafka_oauth_client_secret")
"""Settings that ``<name>_file`` can provide as well."""

_TLS_ONLY: Final = ("kafka_ca_file", "kafka_cert_file", "kafka_key_file")
_SASL_ONLY: Final = ("kafka_sasl_mechanism", "kafka_username", "kafka_oauth_token_url")

_PASSWORD: Final = ("kafka_username", "kafka_password")
_NEEDED: Final = {
    "PLAIN": _PASSWORD,
    "SCRAM-SHA-256": _PASSWORD,
    "SCRAM-SHA-512": _PASSWORD,
    "OAUTHBEARER": ("kafka_oauth_token_url", "kafka_oauth_client_id", "kafka_oauth_client_secret"),
}
"""The settings that each mechanism needs."""


class KafkaSettings(BaseSettings):
    """How to connect to Kafka. The variable of each field is ``STOPLOG_<NAME>``."""

    model_config = SettingsConfigDict(
        env_prefix="STOPLOG_",
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # an input may be a secret
    )

    kafka: str | None = Field(
        None,
        description="Bootstrap servers of Kafka (host:port, comma separated). Unset: the embedded broker, "
        "on STOPLOG_BROKER_PORT.",
    )
    broker_port: int = Field(
        9092, ge=1, le=65535, description="TCP port of the embedded broker on this machine."
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT",
        description="Kafka's `security.protocol`: `PLAINTEXT`, `SSL` (TLS), `SASL_PLAINTEXT` or `SASL_SSL`.",
    )
    kafka_ca_file: Path | None = Field(
        None,
        description="Path of the certificates (PEM) of the authority that signed the brokers' certificates. "
        "Unset: the authorities that the system trusts.",
    )
    kafka_cert_file: Path | None = Field(
        None,
        description="Path of the certificate (PEM, with its chain) that identifies this process.",
    )
    kafka_key_file: Path | None = Field(
        None, description="Path of the private key (PEM) of STOPLOG_KAFKA_CERT_FILE."
    )
    kafka_key_password: SecretStr | None = Field(
        None, description="Password of STOPLOG_KAFKA_KEY_FILE, if the key is encrypted."
    )
    kafka_key_password_file: Path | None = Field(
        None, description="Path of a file that contains STOPLOG_KAFKA_KEY_PASSWORD."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        None,
        description="Kafka's `sasl.mechanism`: `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`.",
    )
    kafka_username: str | None = Field(None, description="User name for PLAIN and SCRAM.")
    kafka_password: SecretStr | None = Field(None, description="Password of STOPLOG_KAFKA_USERNAME.")
    kafka_password_file: Path | None = Field(
        None, description="Path of a file that contains STOPLOG_KAFKA_PASSWORD."
    )
    kafka_oauth_token_url: str | None = Field(
        None, description="URL of the token endpoint for OAUTHBEARER (https, or http on loopback)."
    )
    kafka_oauth_client_id: str | None = Field(
        None, description="Client id with which tokens are requested (client credentials)."
    )
    kafka_oauth_client_secret: SecretStr | None = Field(
        None, description="Secret of STOPLOG_KAFKA_OAUTH_CLIENT_ID."
    )
    kafka_oauth_client_secret_file: Path | None = Field(
        None,
        description="Path of a file that contains STOPLOG_KAFKA_OAUTH_CLIENT_SECRET. It is read for each "
        "token.",
    )
    kafka_oauth_scope: str | None = Field(None, description="Scope of the tokens that are requested.")
    kafka_oauth_ca_file: Path | None = Field(
        None,
        description="Path of the certificates (PEM) of the authority that signed the token endpoint's "
        "certificate. Unset: the authorities that the system trusts.",
    )

    @field_validator("kafka_oauth_token_url")
    @classmethod
    def _url_keeps_the_secret(cls, value: str | None) -> str | None:
        if value is not None and re.fullmatch(_SAFE_URL, value) is None:
            raise ValueError("would send the secret unencrypted: set an https URL")
        return value

    @model_validator(mode="after")
    def _can_be_used(self) -> Self:
        """Find contradictions, and files that cannot be used, before anything connects.

        Raises:
            SettingsError: It names the setting, and never contains a secret.
        """
        self._check_protocol()
        self._check_credentials()
        _ = self.connection.ssl_context
        return self

    def _check_protocol(self) -> None:
        protocol, mechanism = self.kafka_security_protocol, self.kafka_sasl_mechanism
        if protocol != "PLAINTEXT" and self.kafka is None:
            raise SettingsError(
                f"STOPLOG_KAFKA_SECURITY_PROTOCOL={protocol} cannot be used with the embedded broker: set "
                f"STOPLOG_KAFKA to the bootstrap servers of your Kafka"
            )
        unused = [name for name in _TLS_ONLY if getattr(self, name) is not None]
        if unused and not protocol.endswith("SSL"):
            raise SettingsError(
                f"{_variable(unused[0])} is set, but STOPLOG_KAFKA_SECURITY_PROTOCOL={protocol} does not "
                f"encrypt: set STOPLOG_KAFKA_SECURITY_PROTOCOL to SSL or SASL_SSL"
            )
        if mechanism is None and protocol.startswith("SASL"):
            raise SettingsError(
                f"STOPLOG_KAFKA_SECURITY_PROTOCOL={protocol} needs a mechanism: set "
                f"STOPLOG_KAFKA_SASL_MECHANISM"
            )
        unused = [name for name in _SASL_ONLY if getattr(self, name) is not None]
        if unused and not protocol.startswith("SASL"):
            raise SettingsError(
                f"{_variable(unused[0])} is set, but STOPLOG_KAFKA_SECURITY_PROTOCOL={protocol} does not use "
                f"SASL: set STOPLOG_KAFKA_SECURITY_PROTOCOL to SASL_SSL"
            )

    def _check_credentials(self) -> None:
        mechanism = self.kafka_sasl_mechanism
        for name in _NEEDED.get(mechanism or "", ()):
            if getattr(self, name) is None and getattr(self, f"{name}_file", None) is None:
                setting = _variable(f"{name}_file" if name in _SECRETS else name)
                raise SettingsError(f"STOPLOG_KAFKA_SASL_MECHANISM={mechanism} needs {setting}: set it")
        for name in _SECRETS:
            if getattr(self, name) is not None and getattr(self, f"{name}_file") is not None:
                raise SettingsError(f"{_variable(name)} and {_variable(name)}_FILE are both set: unset one")
        if (self.kafka_cert_file is None) != (self.kafka_key_file is None):
            raise SettingsError(
                "only one of STOPLOG_KAFKA_CERT_FILE and STOPLOG_KAFKA_KEY_FILE is set: set both, or neither"
            )

    @property
    def bootstrap(self) -> str:
        """Bootstrap servers of Kafka."""
        return self.kafka or f"127.0.0.1:{self.broker_port}"

    def forget_connection(self) -> None:
        """Have :attr:`connection` created anew: that of a parent process relies on threads of its own."""
        self.__dict__.pop("connection", None)

    @cached_property
    def connection(self) -> KafkaConnection:
        """The connection that all Kafka clients of this process share."""
        return KafkaConnection(
            self.bootstrap,
            Security(
                protocol=self.kafka_security_protocol,
                ca_file=self.kafka_ca_file,
                cert_file=self.kafka_cert_file,
                key_file=self.kafka_key_file,
                key_password=self._secret("kafka_key_password"),
                mechanism=self.kafka_sasl_mechanism,
                username=self.kafka_username,
                password=self._secret("kafka_password"),
                oauth=self._oauth(),
            ),
        )

    def _oauth(self) -> OAuthClient | None:
        if self.kafka_sasl_mechanism != "OAUTHBEARER":
            return None
        assert self.kafka_oauth_token_url is not None
        assert self.kafka_oauth_client_id is not None
        self._secret("kafka_oauth_client_secret")  # finds a file that cannot be read
        return OAuthClient(
            self.kafka_oauth_token_url,
            self.kafka_oauth_client_id,
            lambda: self._secret("kafka_oauth_client_secret") or "",
            self.kafka_oauth_scope,
            self.kafka_oauth_ca_file,
        )

    def _secret(self, name: str) -> str | None:
        """Return the secret in the setting *name*, or in the file that ``<name>_file`` names."""
        value: SecretStr | None = getattr(self, name)
        if value is not None:
            return value.get_secret_value()
        file: Path | None = getattr(self, f"{name}_file")
        return None if file is None else read_secret(file, _variable(f"{name}_file"))


def _variable(name: str) -> str:
    return f"STOPLOG_{name.upper()}"
