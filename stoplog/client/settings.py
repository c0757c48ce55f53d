"""The settings of the SDK, read once from arguments and ``STOPLOG_*`` variables, then frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from stoplog.errors import SettingsError
from stoplog.identity.addresses import DEFAULT_IPV6_PREFIX, Networks
from stoplog.identity.forwarding import TrustedProxies, forwarding_fields
from stoplog.identity.identity import Chain
from stoplog.identity.normalization import Normalization
from stoplog.kafka.settings import KafkaSettings
from stoplog.topics import DEFAULT_FILE
from stoplog.wire.holds import MAX_LEASE_MS, MIN_LEASE_MS


class Settings(KafkaSettings):
    """All settings of a :class:`~stoplog.Limiter`. The variable of each field is ``STOPLOG_<NAME>``."""

    topics: Path = Field(DEFAULT_FILE, description="Path of the file that defines the topics (topics.yaml).")
    node_id: str | None = Field(
        None,
        description="Name of this gateway or program in the status. Unset: host name and process id.",
    )
    deadline_ms: int = Field(
        250,
        ge=5,
        le=60_000,
        description="Milliseconds that a check waits for its reply. After that it fails open.",
    )
    breaker_misses: int = Field(
        3,
        ge=1,
        description="Consecutive deadlines that a partition may miss. After that its circuit breaker opens, "
        "and its checks fail open at once.",
    )
    publish_timeout_ms: int = Field(
        2_000,
        ge=100,
        description="Milliseconds after which a check that could not be published is dropped. It is then "
        "counted for no client.",
    )
    max_in_flight: int = Field(
        100_000,
        ge=1,
        description="Checks that may wait for a reply at the same time. Further checks fail open at once.",
    )
    deny_cache: int = Field(
        10_000,
        ge=0,
        description="Denials that are remembered. A client over its limit is then denied without a round "
        "trip to the broker. 0 turns the deny cache off.",
    )
    lease_max_ms: int = Field(
        MAX_LEASE_MS,
        ge=0,
        le=MAX_LEASE_MS,
        description="The longest lease, in milliseconds. A lease lets a client that is checked often go "
        "ahead without a round trip to the broker, never above its limits. 0 turns leases off.",
    )
    apply_timeout_ms: int = Field(
        5_000,
        validate_default=True,
        description="Milliseconds that a limit change waits to be applied. After that the call returns, and "
        "the change is applied later (HTTP: 202). It must exceed STOPLOG_PUBLISH_TIMEOUT_MS by more than a "
        "second.",
    )
    trusted_proxies: str = Field(
        "",
        description="Networks of the proxies whose X-Forwarded-For, Forwarded and X-Real-IP are believed "
        "(10.0.0.0/8,192.0.2.1), or the number of proxies in a row. Empty: none. See client-identity.md.",
    )
    forwarding_header: str = Field(
        "",
        description="Header field in which trusted proxies send the address of the client: X-Forwarded-For, "
        "Forwarded or X-Real-IP. No other one is read. Empty: all three are read.",
    )
    identify: str = Field(
        "",
        description="Chain that names the client where nothing else does: `header:<name>` and, as the last "
        "one, `address`, such as `header:X-Api-Key,address`. Empty: none.",
    )
    ipv6_prefix: int = Field(
        DEFAULT_IPV6_PREFIX,
        ge=1,
        le=128,
        description="Bits of an IPv6 address that name the client. The addresses of one prefix are one "
        "client, such as 2001:db8:1:2::/64.",
    )
    exempt_addresses: str = Field(
        "", description="Networks whose requests are allowed and not charged (10.0.0.0/8,2001:db8::/32)."
    )
    blocked_addresses: str = Field(
        "",
        description="Networks whose requests are refused with 403 and not charged. They come before "
        "STOPLOG_EXEMPT_ADDRESSES.",
    )
    id_normalization: Normalization = Field(
        "none",
        description="Form in which ids are compared: `none` (byte by byte), `nfc` (Unicode's composed form) "
        "or `nfc+casefold` (without regard to case, too). All gateways and programs with the SDK need the "
        "same: one that differs from a running one does not start.",
    )
    tracing: bool = Field(
        False,
        description="Send OpenTelemetry spans. The OTEL_* variables configure the exporter. Needs the extra "
        "`tracing`.",
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _names_proxies(cls, value: str) -> str:
        TrustedProxies.parse(value)
        return value

    @field_validator("forwarding_header")
    @classmethod
    def _has_addresses(cls, value: str) -> str:
        forwarding_fields(value)
        return value

    @field_validator("identify")
    @classmethod
    def _is_a_chain(cls, value: str) -> str:
        Chain.parse(value)
        return value

    @field_validator("exempt_addresses", "blocked_addresses")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        Networks.parse(value)
        return value

    @field_validator("lease_max_ms")
    @classmethod
    def _is_long_enough(cls, value: int) -> int:
        if 0 < value < MIN_LEASE_MS:
            raise ValueError(f"no lease is so short: use 0, or {MIN_LEASE_MS} to {MAX_LEASE_MS}")
        return value

    @field_validator("apply_timeout_ms")
    @classmethod
    def _exceeds_publish_timeout(cls, value: int, info: ValidationInfo) -> int:
        least = info.data.get("publish_timeout_ms", 0) + 1_000
        if value <= least:
            raise ValueError(f"must exceed publish_timeout_ms by more than a second: set it above {least}")
        return value


def read_settings(**fields: Any) -> Settings:
    """Return the settings of a program: *fields*, and the environment's value for every other field.

    Raises:
        SettingsError: A name is unknown or a value is invalid; it names the first of them.
    """
    for name in sorted(fields.keys() - Settings.model_fields.keys()):
        known = ", ".join(Settings.model_fields)
        raise SettingsError(f"{name} is not a setting; use one of {known}")
    try:
        return Settings(**fields)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        raise SettingsError(f"{first['loc'][0]}: {first['msg']}") from None
