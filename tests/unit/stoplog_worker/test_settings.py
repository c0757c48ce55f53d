from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from stoplog_worker.settings import Settings

from stoplog.errors import InvalidInput, InvalidLimit, SettingsError
from stoplog.policy import UNLIMITED, parse_policy


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without a setting of Stoplog."""
    for field in Settings.model_fields:
        monkeypatch.delenv(f"STOPLOG_{field.upper()}", raising=False)


def test_settings_without_environment_have_their_defaults() -> None:
    settings = Settings()
    assert settings.default_policy == parse_policy("100/minute")
    assert settings.bootstrap == "127.0.0.1:9092"
    assert settings.metrics_host == "127.0.0.1"
    assert settings.topics.is_file()


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPLOG_KAFKA", "a:1,b:2")
    monkeypatch.setenv("STOPLOG_HOME", "elsewhere")
    monkeypatch.setenv("STOPLOG_INSTANCE_ID", "w.2")
    monkeypatch.setenv("STOPLOG_NOBODY_KNOWS", "x")
    settings = Settings()
    assert settings.bootstrap == "a:1,b:2"
    assert settings.home == Path("elsewhere")
    assert settings.node_id.startswith("w.2@")


@pytest.mark.parametrize("name", ["", "a"])
def test_default_lane_has_names_without_suffix(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("STOPLOG_LANE", name)
    settings = Settings()
    assert (settings.lane, settings.app_id, settings.instance_id) == ("", "stoplog", "worker-1")
    assert settings.tables == Path(".stoplog/worker-1")


def test_further_lane_has_its_own_group_tables_and_worker_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPLOG_LANE", "b")
    settings = Settings()
    assert (settings.app_id, settings.instance_id) == ("stoplog-b", "worker-b-1")
    assert settings.tables == Path(".stoplog/lane-b/worker-b-1")
    monkeypatch.setenv("STOPLOG_INSTANCE_ID", "worker-1")
    assert Settings().tables == Path(".stoplog/lane-b/worker-1")


@pytest.mark.parametrize("name", ["B", "ninechars", "../up", " ", "owner", "b\n"])
def test_lane_that_cannot_name_topics_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("STOPLOG_LANE", name)
    with pytest.raises(InvalidInput, match="lane"):
        Settings()


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.kafka = "x:1"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("unlimited", UNLIMITED),
        (" unlimited ", UNLIMITED),
        ("5/second", parse_policy("5/second")),
        ("10/second, 1000/1h", parse_policy(["1000/hour", "10/second"])),
    ],
)
def test_default_limits_are_parsed(monkeypatch: pytest.MonkeyPatch, text: str, policy: object) -> None:
    monkeypatch.setenv("STOPLOG_DEFAULT_LIMITS", text)
    assert Settings().default_policy == policy


@pytest.mark.parametrize("text", [" ", "lots", "10/second,", "1/second,2/1s", "unlimited,1/day"])
def test_invalid_default_limits_are_refused_with_remedy(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("STOPLOG_DEFAULT_LIMITS", text)
    with pytest.raises(InvalidLimit, match="default_limits") as caught:
        Settings()
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INSTANCE_ID", " "),
        ("INSTANCE_ID", "../up"),
        ("INSTANCE_ID", "x" * 65),
        ("BROKER_PORT", "0"),
        ("BROKER_PORT", "65536"),
        ("METRICS_PORT", "-1"),
        ("FLUSH_INTERVAL_MS", "9"),
        ("SESSION_TIMEOUT_MS", "999"),
        ("CACHED_CLIENTS", "10"),
        ("FLUSH_INTERVAL_MS", "soon"),
    ],
)
def test_unsafe_values_are_refused_at_start(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"STOPLOG_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_unsent_record_is_given_up_long_before_partitions_move() -> None:
    for session_ms in (1_000, 6_000, 300_000):
        settings = Settings(session_timeout_ms=session_ms)
        assert 0 < settings.send_timeout_ms <= session_ms / 3


SECRET = "ab" * 32


def test_relay_keys_come_from_the_variable_or_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert Settings().keys.announced == {}
    monkeypatch.setenv("STOPLOG_RELAY_KEYS", f"2026:{SECRET},2027:{SECRET}00")
    keys = Settings().keys
    assert list(keys.announced) == ["2026", "2027"]
    assert keys.secret("2026") == bytes.fromhex(SECRET)
    monkeypatch.delenv("STOPLOG_RELAY_KEYS")
    file = tmp_path / "keys"
    file.write_text(f"2027:{SECRET}00\n2026:{SECRET}\n")
    monkeypatch.setenv("STOPLOG_RELAY_KEYS_FILE", str(file))
    assert list(Settings().keys.announced) == ["2027", "2026"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SECRET, "entry 1 is malformed"),
        (f"a:{SECRET},b:{SECRET}x", "entry 2 is malformed"),
        (f"a:{SECRET}0", "entry 1 is malformed"),
        (f"a b:{SECRET}", "entry 1 is malformed"),
        (f"a:{SECRET[2:]}", "the key of entry 1 has 31 bytes; at least 32"),
        (f"a:{SECRET},a:{SECRET}", "entry 2 has the id of an earlier entry"),
    ],
)
def test_malformed_relay_keys_are_refused_without_showing_them(
    monkeypatch: pytest.MonkeyPatch, text: str, problem: str
) -> None:
    monkeypatch.setenv("STOPLOG_RELAY_KEYS", text)
    with pytest.raises(InvalidInput, match=problem) as error:
        Settings()
    assert SECRET[:20] not in str(error.value)


def test_relay_keys_file_that_cannot_be_read_or_used_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STOPLOG_RELAY_KEYS_FILE", str(tmp_path / "missing"))
    with pytest.raises(SettingsError, match=r"STOPLOG_RELAY_KEYS_FILE=.*missing cannot be read"):
        Settings()
    (tmp_path / "missing").write_text("")
    with pytest.raises(SettingsError, match="is empty"):  # not the same as no keys
        Settings()
    monkeypatch.setenv("STOPLOG_RELAY_KEYS", f"a:{SECRET}")
    with pytest.raises(InvalidInput, match="set one of them"):
        Settings()


def test_relay_keys_are_not_in_the_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPLOG_RELAY_KEYS", f"a:{SECRET}")
    settings = Settings()
    assert SECRET not in repr(settings) + str(settings) + repr(settings.keys)
