"""The settings of the gateway: those of the SDK, and those of a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from stoplog.client.settings import Settings
from stoplog.errors import SettingsError
from stoplog.identity.forwarding import TrustedProxies

GRACE_S: Final = 5
"""Seconds that open HTTP requests have to end when the gateway stops."""

_CLOSING_S: Final = 3.0
"""Seconds for the rest of a stop: a request to a silent broker is given up after 2 s."""

_ADDRESS: Final = r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:/]+):[1-9][0-9]{0,4}"


class GatewaySettings(Settings):
    """All settings of a gateway. The variable of each field is ``STOPLOG_<NAME>``."""

    home: Path = Field(
        Path(".stoplog"),
        description="Directory of the embedded broker's data, of the workers' tables, and of the metrics "
        "that several gateway processes share.",
    )
    maven_mirror: str | None = Field(
        None,
        pattern=r"^https?://",
        description="URL of the Maven repository from which Kafka is downloaded, once. Unset: Maven Central.",
    )
    host: str = Field("127.0.0.1", description="Address that the gateway listens on.")
    port: int = Field(
        8080, ge=0, le=65535, description="TCP port that the gateway listens on. 0: any free port."
    )
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Gateway processes that share the port. More than one need Linux.",
    )
    client_header: str = Field(
        "X-Client-Id",
        pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$",
        description="Header field in which a proxy sends the client id to /v1/authorize, unless "
        "STOPLOG_IDENTIFY is set.",
    )
    legacy_headers: bool = Field(
        False,
        description="Also send X-RateLimit-Limit, X-RateLimit-Remaining and X-RateLimit-Reset (seconds).",
    )
    envoy: str | None = Field(
        None,
        description="Address (host:port) of the gRPC rate limit service for Envoy. Unset: no such service. "
        "Needs the extra `envoy`.",
    )
    envoy_mapping: Path | None = Field(
        None,
        description="Path of the file that maps Envoy's descriptors to clients. Unset: the first entry of "
        "a descriptor is the client.",
    )
    envoy_connection_age_s: int = Field(
        300,
        ge=1,
        le=3_600,
        description="Seconds after which a gRPC connection ends, so that callers find new gateways.",
    )
    tokens_file: Path | None = Field(
        None,
        description="Path of the file with the tokens of callers, which `stoplog tokens` writes. It is read "
        "again when it changes. Without it, limits can be read and changed on loopback only. Set it behind a "
        "proxy, too.",
    )
    check_token: Literal["optional", "required"] = Field(
        "optional",
        description="With `required`, checks need a token with the scope `check`, too.",
    )
    tls_cert_file: Path | None = Field(
        None,
        description="Path of the gateway's certificate in PEM, followed by intermediate ones. Unset: no TLS, "
        "for HTTP and for gRPC. The TLS files are read again when they change.",
    )
    tls_key_file: Path | None = Field(
        None, description="Path of the certificate's private key in PEM, without a passphrase."
    )
    tls_client_ca_file: Path | None = Field(
        None,
        description="Path of CA certificates in PEM. If it is set, each client needs a certificate that one "
        "of them signed.",
    )
    startup_s: int = Field(
        10,
        ge=0,
        le=3_600,
        description="Seconds from the start until /readyz answers 200 even if the store does not answer.",
    )
    drain_s: int = Field(
        5,
        ge=0,
        le=3_600,
        description="Seconds between the signal to stop, when /readyz begins to answer 503, and the end of "
        "the listener. Set it to at least two intervals of the load balancer's health check.",
    )
    keepalive_s: int = Field(
        75,
        ge=1,
        le=3_600,
        description="Seconds that a connection of HTTP or gRPC may stay open without a request. Set it above "
        "the idle timeout of the load balancer's own connections.",
    )
    head_timeout_s: int = Field(
        10,
        ge=1,
        le=3_600,
        description="Seconds from the first byte of an HTTP request to the end of its header fields, and for "
        "the handshakes of TLS and gRPC.",
    )
    body_timeout_s: int = Field(
        10,
        ge=1,
        le=3_600,
        description="Seconds without progress of a request's body, or of a response that the caller does not "
        "read. After that the connection is closed.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Lowest level that is logged: DEBUG, INFO, WARNING or ERROR."
    )

    @field_validator("client_header")
    @classmethod
    def _is_no_list(cls, value: str) -> str:
        if value.lower() in ("x-forwarded-for", "forwarded"):
            raise ValueError(
                f"callers choose the left part of {value}, so they would never be limited: unset it, and set "
                f"STOPLOG_IDENTIFY=address and STOPLOG_TRUSTED_PROXIES to the networks of the proxies"
            )
        return value

    @field_validator("envoy")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None and re.fullmatch(_ADDRESS, value) is None:
            raise ValueError("no address and port: set one such as 127.0.0.1:8081 or [::1]:8081")
        return value

    @model_validator(mode="after")
    def _lists_find_addresses(self) -> Self:
        """Refuse lists of addresses that could apply to nobody but the proxies.

        Without a chain, the field of the client id may contain addresses. Envoy's descriptors may, too.

        Raises:
            SettingsError: It names the setting.
        """
        lists = {
            "STOPLOG_EXEMPT_ADDRESSES": self.exempt_addresses,
            "STOPLOG_BLOCKED_ADDRESSES": self.blocked_addresses,
        }
        given = [name for name, value in lists.items() if value.strip()]
        from_envoy = self.envoy is not None or self.envoy_mapping is not None
        if (
            given
            and self.identify.strip()
            and not from_envoy
            and not TrustedProxies.parse(self.trusted_proxies)
        ):
            raise SettingsError(
                f"{given[0]} applies to no client: the callers of /v1/authorize are proxies, and none is "
                f"trusted to name the address of its caller. Set STOPLOG_TRUSTED_PROXIES to their networks"
            )
        return self

    @property
    def url_scheme(self) -> str:
        """``https`` with a certificate, otherwise ``http``."""
        return "http" if self.tls_cert_file is None else "https"

    @property
    def stop_s(self) -> float:
        """Seconds that a gateway may take to stop: it drains, requests end, and all checks are published."""
        return self.drain_s + GRACE_S + (self.deadline_ms + self.publish_timeout_ms) / 1_000 + _CLOSING_S
