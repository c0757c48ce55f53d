"""Kafka's jars: complete, or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from stoplog_gateway.local import kafka_jars as jars
from stoplog_gateway.local.kafka_jars import JarsUnavailable, fetch_jars, jars_folder

from tests.support.broker import CHECKOUT


def test_the_client_library_is_of_the_brokers_version() -> None:
    folder = fetch_jars(CHECKOUT / ".stoplog")
    names = {jar.name for jar in folder.iterdir()}
    assert {f"kafka_2.13-{jars.KAFKA_VERSION}.jar", f"kafka-clients-{jars.KAFKA_VERSION}.jar"} <= names
    assert len([name for name in names if name.startswith("kafka-clients-")]) == 1


def test_what_could_not_be_fetched_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(repository: Path) -> list[Path]:
        repository.mkdir()
        (repository / "half.jar").write_bytes(b"PK")
        raise RuntimeError("no network")

    monkeypatch.setattr(jars, "_resolve", cut_off)
    with pytest.raises(JarsUnavailable, match=r"no network.*STOPLOG_KAFKA"):
        fetch_jars(tmp_path)

    assert not jars_folder(tmp_path).exists()
    assert list((tmp_path / "kafka").iterdir()) == []


def test_a_second_process_that_fetched_the_same_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raced(repository: Path) -> list[Path]:
        repository.mkdir()
        jar = repository / "kafka.jar"
        jar.write_bytes(b"PK")
        jars_folder(tmp_path).mkdir()
        (jars_folder(tmp_path) / "kafka.jar").write_bytes(b"PK of the other")
        return [jar]

    monkeypatch.setattr(jars, "_resolve", raced)
    assert (fetch_jars(tmp_path) / "kafka.jar").read_bytes() == b"PK of the other"
