"""The gateway's settings: read once from ``STOPLOG_*`` variables, then frozen."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from stoplog.errors import SettingsError
from stoplog.topics import DEFAULT_FILE

GRACE_S: Final = 5
"""Requests that are under way when a gateway is stopped have this long to end."""

_ADDRESS: Final = r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:/]+):[1-9][0-9]{0,4}"

_CLOSING_S: Final = 3.0
"""What closing takes beyond what settings allow: a question to a silent broker is given up after 2 s."""


class Settings(BaseSettings):
    """One value, read at start. Every field is ``STOPLOG_<NAME>`` in the environment."""

    model_config = SettingsConfigDict(
        env_prefix="STOPLOG_", env_ignore_empty=True, frozen=True, extra="ignore"
    )

    home: Path = Field(
        Path(".stoplog"), description="Folder of the embedded broker's data and workers' tables."
    )
    kafka: str | None = Field(
        None,
        description="Bootstrap servers of a Kafka of your own (host:port, comma separated); "
        "unset: the embedded broker on broker_port.",
    )
    broker_port: int = Field(9092, ge=1, le=65535, description="Port of the embedded broker.")
    topics: Path = Field(DEFAULT_FILE, description="The topics file.")
    host: str = Field("127.0.0.1", description="Address the gateway listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port the gateway listens on; 0: any free one.")
    processes: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes on the port, each a gateway of its own; more than one need Linux.",
    )
    node_id: str | None = Field(None, description="Name of this gateway; unset: host name and process id.")
    deadline_ms: int = Field(
        250,
        ge=5,
        le=60_000,
        description="Milliseconds a check waits for its answer before it is let through.",
    )
    breaker_misses: int = Field(
        3, ge=1, description="Deadlines missed in a row by one partition until it is let through at once."
    )
    publish_timeout_ms: int = Field(
        2_000,
        ge=100,
        description="Milliseconds until a check that could not be published is dropped, uncounted.",
    )
    max_in_flight: int = Field(
        100_000, ge=1, description="Checks waiting for an answer, in all; more are let through at once."
    )
    deny_cache: int = Field(
        10_000,
        ge=0,
        description="Denials remembered, so that a client over its limit is denied without asking; 0: none.",
    )
    apply_timeout_ms: int = Field(
        5_000,
        validate_default=True,
        description="Milliseconds a limit change waits to be applied before it is answered 202; more than a "
        "second above publish_timeout_ms.",
    )
    client_header: str = Field(
        "X-Client-Id",
        pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$",
        description="Header field that names the client to /v1/authorize; the proxy sets it.",
    )
    legacy_headers: bool = Field(
        False, description="Answer checks with X-RateLimit-Limit, -Remaining and -Reset (seconds) too."
    )
    envoy: str | None = Field(
        None,
        description="Address (host:port) of Envoy's rate limit service, over gRPC; unset: none. It needs "
        "the extra `envoy`.",
    )
    envoy_mapping: Path | None = Field(
        None,
        description="File that says whom Envoy's descriptors mean; unset: the first entry is the client.",
    )
    admin_token: SecretStr | None = Field(
        None, description="Bearer token that changes of limits must carry; required beyond loopback."
    )
    tracing: bool = Field(
        False,
        description="Send spans by OpenTelemetry (OTEL_* variables say where to); needs stoplog[tracing].",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="DEBUG, INFO, WARNING or ERROR."
    )

    @field_validator("apply_timeout_ms")
    @classmethod
    def _changes_are_published_first(cls, value: int, info: ValidationInfo) -> int:
        least = info.data.get("publish_timeout_ms", 0) + 1_000
        if value <= least:
            raise ValueError(f"a change takes publish_timeout_ms and a second: give more than {least}")
        return value

    @field_validator("envoy")
    @classmethod
    def _envoy_is_an_address(cls, value: str | None) -> str | None:
        if value is not None and re.fullmatch(_ADDRESS, value) is None:
            raise ValueError("no address and port: give one such as 127.0.0.1:8081 or [::1]:8081")
        return value

    @field_validator("admin_token")
    @classmethod
    def _token_can_be_sent(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        token = value.get_secret_value().strip()  # a file's last line feed is no part of it
        if len(token) < 8:
            raise ValueError("shorter than 8 characters: choose a longer one, or unset it")
        if re.fullmatch(r"[ -~]+", token) is None:
            raise ValueError("not printable ASCII, as a header field wants it: choose another")
        return SecretStr(token)

    @property
    def bootstrap(self) -> str:
        """Where Kafka is."""
        return self.kafka or f"127.0.0.1:{self.broker_port}"

    @property
    def stop_s(self) -> float:
        """Seconds a gateway may take to stop: requests end, checks are answered, all is published."""
        return GRACE_S + (self.deadline_ms + self.publish_timeout_ms) / 1_000 + _CLOSING_S


def read_settings(**fields: Any) -> Settings:
    """The settings of a program of one's own: *fields*, and what they leave out from the environment.

    Raises:
        SettingsError: names the first that is unknown or cannot have its value.
    """
    for name in sorted(fields.keys() - Settings.model_fields.keys()):
        raise SettingsError(f"{name}: no such setting; there are {', '.join(Settings.model_fields)}")
    try:
        return Settings(**fields)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        raise SettingsError(f"{first['loc'][0]}: {first['msg']}") from None
