from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from stoplog_gateway.settings import GatewaySettings

from stoplog.client.settings import Settings, read_settings
from stoplog.errors import SettingsError
from stoplog.kafka.settings import KafkaSettings


@pytest.mark.parametrize("name", sorted(GatewaySettings.model_fields.keys() - Settings.model_fields.keys()))
def test_read_settings_with_a_setting_of_the_gateway_names_only_those_of_the_sdk(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} is not a setting; use one of kafka, ") as raised:
        read_settings(kafka="kafka:9092", **{name: "1"})
    listed = str(raised.value).partition("use one of ")[2].split(", ")
    assert listed == list(Settings.model_fields)


def test_bootstrap_without_kafka_is_the_embedded_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STOPLOG_KAFKA", raising=False)
    assert Settings(broker_port=19092).bootstrap == "127.0.0.1:19092"
    assert Settings(broker_port=19092, kafka="one:9092,two:9092").bootstrap == "one:9092,two:9092"


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("trusted_proxies", "proxy", "write it as 10.0.0.0/8"),
        ("trusted_proxies", "40", "use 0 to 32"),
        ("forwarding_header", "Via", "use X-Forwarded-For, Forwarded or X-Real-IP"),
        ("identify", "address,header:X-Key", "write address last"),
        ("identify", "header:X-Key,header:x-key", "remove one"),
        ("identify", "X-Key", "write header:X-Api-Key or address"),
        ("identify", "header:X Key", "write header:X-Api-Key or address"),
        ("ipv6_prefix", 0, "greater than or equal to 1"),
        ("blocked_addresses", "10.0.0.1/8", "write 10.0.0.0/8"),
        ("exempt_addresses", "10.0.0.0/8 x", "write it as 10.0.0.0/8"),
    ],
)
def test_invalid_setting_of_identity_is_refused_with_its_name_and_a_remedy(
    name: str, value: object, remedy: str
) -> None:
    with pytest.raises(SettingsError, match=f"^{name}: ") as refused:
        read_settings(**{name: value})
    assert remedy in str(refused.value)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "forwarded"])
def test_list_of_addresses_is_no_client_header(header: str) -> None:
    with pytest.raises(ValidationError, match="set STOPLOG_IDENTIFY=address and STOPLOG_TRUSTED_PROXIES"):
        GatewaySettings(client_header=header)


@pytest.mark.parametrize("name", ["exempt_addresses", "blocked_addresses"])
def test_list_of_addresses_that_applies_to_no_client_of_a_proxy_is_refused(name: str) -> None:
    lists: dict[str, Any] = {name: "192.0.2.0/24"}
    with pytest.raises(
        SettingsError, match=rf"STOPLOG_{name.upper()} applies to no client.*Set STOPLOG_TRUST"
    ):
        GatewaySettings(identify="header:X-Api-Key", **lists)
    GatewaySettings(identify="header:X-Api-Key", trusted_proxies="1", **lists)
    GatewaySettings(**lists)  # X-Client-Id may contain an address
    GatewaySettings(identify="address", envoy="127.0.0.1:8081", **lists)  # descriptors may, too
    Settings(identify="header:X-Api-Key", **lists)  # of an application, whose callers may be clients


@pytest.mark.parametrize("settings", [Settings, GatewaySettings])
def test_every_setting_is_described_in_whole_sentences(settings: type[Settings]) -> None:
    for name, field in settings.model_fields.items():
        text = field.description or ""
        assert text.endswith("."), name
        assert text[0].isupper(), name


def test_settings_of_the_sdk_hold_nothing_of_a_server() -> None:
    assert Settings.model_fields.keys() - KafkaSettings.model_fields.keys() == {
        "apply_timeout_ms",
        "blocked_addresses",
        "breaker_misses",
        "deadline_ms",
        "deny_cache",
        "exempt_addresses",
        "forwarding_header",
        "id_normalization",
        "identify",
        "ipv6_prefix",
        "lease_max_ms",
        "max_in_flight",
        "node_id",
        "publish_timeout_ms",
        "topics",
        "tracing",
        "trusted_proxies",
    }


@pytest.mark.parametrize("value", [0, 1, 99, 100, 10_000, 10_001])
def test_longest_lease_is_0_or_as_long_as_the_log_grants(value: int) -> None:
    if value in (0, 100, 10_000):
        assert read_settings(lease_max_ms=value).lease_max_ms == value
    else:
        with pytest.raises(SettingsError, match="lease_max_ms"):
            read_settings(lease_max_ms=value)
