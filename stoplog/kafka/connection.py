"""How to reach a Kafka and prove who connects: one value for librdkafka's clients and for aiokafka's."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaError

from stoplog.errors import SettingsError
from stoplog.kafka.connection_probe import probe
from stoplog.kafka.connection_problems import ConnectionProblems
from stoplog.kafka.oauth_tokens import OAuthClient, TokenProvider

PLAINTEXT: Final = "PLAINTEXT"


@dataclass(frozen=True)
class Security:
    """Encryption and credentials, in the terms of :class:`~stoplog.kafka.settings.KafkaSettings`.

    Attributes:
        protocol: Kafka's ``security.protocol``.
        ca_file: Certificates that signed those of the brokers (PEM); ``None``: those of the system.
        cert_file: Certificate of this client and its chain (PEM).
        key_file: Its private key (PEM).
        key_password: Password of *key_file*.
        mechanism: Kafka's ``sasl.mechanism``; ``None`` without SASL.
        username: User of PLAIN and SCRAM.
        password: Password of *username*.
        oauth: The client of OAUTHBEARER.
    """

    protocol: str = PLAINTEXT
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    key_password: str | None = field(default=None, repr=False)
    mechanism: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    oauth: OAuthClient | None = None

    @property
    def encrypted(self) -> bool:
        """Whether connections use TLS."""
        return self.protocol.endswith("SSL")


class KafkaConnection:
    """The address of a Kafka, and what its clients need to connect.

    Args:
        bootstrap: Bootstrap servers (host:port, comma separated).
        security: Encryption and credentials. By default there are none.

    Attributes:
        tokens: The tokens for OAUTHBEARER; ``None`` with any other mechanism.
    """

    def __init__(self, bootstrap: str, security: Security | None = None) -> None:
        self.bootstrap = bootstrap
        self.security = security or Security()
        oauth = self.security.oauth
        self.tokens = TokenProvider(oauth) if oauth is not None else None
        self._problems = ConnectionProblems(self.security.mechanism, self._probe)

    def __repr__(self) -> str:
        return f"<KafkaConnection {self.bootstrap} {self.security.protocol}>"

    def client_config(self) -> dict[str, Any]:
        """Return the settings of librdkafka that every client needs.

        Raises:
            Unavailable: There is no token for OAUTHBEARER.
        """
        return {
            "bootstrap.servers": self.bootstrap,
            "error_cb": self.on_error,
            **self._security_config,
            **self._token_config(),
        }

    def _token_config(self) -> dict[str, Any]:
        if self.tokens is None:
            return {}
        # Without a token, the client's constructor would block for ten seconds and then fail.
        self.tokens.get()
        return {"oauth_cb": self.tokens.for_librdkafka}

    @cached_property
    def _security_config(self) -> dict[str, Any]:
        security = self.security
        if security.protocol == PLAINTEXT:
            return {}
        config = {
            "security.protocol": security.protocol,
            "ssl.ca.location": _text(security.ca_file),
            "ssl.certificate.location": _text(security.cert_file),
            "ssl.key.location": _text(security.key_file),
            "ssl.key.password": security.key_password,
            "sasl.mechanism": security.mechanism,
            "sasl.username": security.username,
            "sasl.password": security.password,
        }
        return {name: value for name, value in config.items() if value is not None}

    @cached_property
    def ssl_context(self) -> ssl.SSLContext | None:
        """The context for Python's TLS; ``None`` if connections are not encrypted.

        Raises:
            SettingsError: A file of certificates or keys cannot be used.
        """
        return _ssl_context(self.security) if self.security.encrypted else None

    def on_error(self, error: KafkaError) -> None:
        """Record an error that librdkafka reports outside any request."""
        self._problems.record(error)

    def explain(self, error: KafkaError) -> str:
        """Return why a request failed with *error*, and the remedy. Blocks for some seconds at most."""
        return self._problems.explain(error)

    @property
    def known_problem(self) -> str | None:
        """Why no client could connect lately, with the remedy; ``None`` if no cause was found."""
        return self._problems.known()

    def _probe(self) -> str | None:
        return probe(self.bootstrap, self.security.protocol, self.ssl_context)


def _ssl_context(security: Security) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=_text(security.ca_file))
    except (OSError, ssl.SSLError) as exc:
        raise SettingsError(
            f"STOPLOG_KAFKA_CA_FILE={security.ca_file} cannot be used ({exc}): set the path of a PEM file "
            f"with the certificates of the authority that signed the brokers' certificates"
        ) from None
    if security.cert_file is not None and security.key_file is not None:
        # Without a password, OpenSSL would ask the terminal for it.
        password = security.key_password or ""
        try:
            context.load_cert_chain(security.cert_file, security.key_file, password=lambda: password)
        except (OSError, ssl.SSLError) as exc:
            raise SettingsError(
                f"STOPLOG_KAFKA_CERT_FILE={security.cert_file} and STOPLOG_KAFKA_KEY_FILE="
                f"{security.key_file} cannot be used ({exc}): set the paths of a PEM certificate and of its "
                f"private key, and STOPLOG_KAFKA_KEY_PASSWORD_FILE if the key is encrypted"
            ) from None
    return context


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
