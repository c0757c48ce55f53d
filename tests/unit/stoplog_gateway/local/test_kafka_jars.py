"""Kafka's jars: downloaded completely or not at all, from any Maven repository, with progress."""

from __future__ import annotations

from pathlib import Path

import pytest
from stoplog_gateway.local import kafka_jars as jars
from stoplog_gateway.local.kafka_jars import (
    COORDINATES,
    Download,
    JarsUnavailable,
    OnProgress,
    fetch_jars,
    jars_folder,
)

from tests.support.broker import CHECKOUT
from tests.support.maven_mirror import add_artifact, create_ca, serving_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A Maven repository that has Kafka, without its dependencies."""
    folder = tmp_path / "repository"
    for coordinate in COORDINATES:
        add_artifact(folder, coordinate)
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without jars, in an environment that sets no certificates and no proxies."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_jars_of_the_real_kafka_have_one_client_library_of_its_version() -> None:
    found = names(fetch_jars(CHECKOUT / ".stoplog"))
    assert {f"kafka_2.13-{jars.KAFKA_VERSION}.jar", f"kafka-clients-{jars.KAFKA_VERSION}.jar"} <= found
    assert len([name for name in found if name.startswith("kafka-clients-")]) == 1


def test_fetch_from_a_mirror_returns_all_jars_and_shows_progress(home: Path, repository: Path) -> None:
    shown: list[Download] = []
    with serving_repository(repository) as url:
        folder = fetch_jars(home, mirror=f"{url}/", on_progress=shown.append)

    assert folder == jars_folder(home)
    assert names(folder) == {f"kafka_2.13-{jars.KAFKA_VERSION}.jar", "log4j-slf4j-impl-2.25.4.jar"}
    assert shown[0] == Download()
    bytes_of_jars = sum(jar.stat().st_size for jar in folder.iterdir())
    assert shown[-1] == Download(jars=2, jars_in_all=2, received=bytes_of_jars)
    assert [it.jars for it in shown] == sorted(it.jars for it in shown)


def test_fetch_with_jars_there_downloads_nothing(home: Path) -> None:
    jars_folder(home).mkdir(parents=True)
    assert fetch_jars(home, mirror="http://127.0.0.1:1") == jars_folder(home)


@pytest.mark.needs("openssl")
def test_fetch_from_a_server_whose_ca_only_the_system_trusts_succeeds(
    home: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ca, certificate = create_ca(tmp_path)
    with serving_repository(repository, certificate) as url:
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
        assert len(names(fetch_jars(home, mirror=url))) == 2


@pytest.mark.needs("openssl")
def test_fetch_from_a_server_whose_ca_nobody_trusts_says_where_to_add_it(
    home: Path, repository: Path, tmp_path: Path
) -> None:
    _, certificate = create_ca(tmp_path)
    with (
        serving_repository(repository, certificate) as url,
        pytest.raises(JarsUnavailable, match=r"CERTIFICATE_VERIFY_FAILED.*add the CA of your proxy"),
    ):
        fetch_jars(home, mirror=url)
    assert not jars_folder(home).exists()


def test_fetch_from_a_mirror_without_kafka_names_the_setting(home: Path, tmp_path: Path) -> None:
    with (
        serving_repository(tmp_path / "empty") as url,
        pytest.raises(JarsUnavailable, match=rf"downloaded from {url} .*STOPLOG_MAVEN_MIRROR.*STOPLOG_KAFKA"),
    ):
        fetch_jars(home, mirror=url)


def test_fetch_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(cache: Path, repository: str, on_progress: OnProgress) -> list[Path]:
        cache.mkdir()
        (cache / "half.jar").write_bytes(b"PK")
        raise RuntimeError("no network")

    monkeypatch.setattr(jars, "_download", cut_off)
    with pytest.raises(JarsUnavailable, match=r"no network.*STOPLOG_KAFKA"):
        fetch_jars(tmp_path)

    assert not jars_folder(tmp_path).exists()
    assert list((tmp_path / "kafka").iterdir()) == []


def test_fetch_beside_another_process_takes_its_jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raced(cache: Path, repository: str, on_progress: OnProgress) -> list[Path]:
        cache.mkdir()
        jar = cache / "kafka.jar"
        jar.write_bytes(b"PK")
        jars_folder(tmp_path).mkdir()
        (jars_folder(tmp_path) / "kafka.jar").write_bytes(b"PK of the other")
        return [jar]

    monkeypatch.setattr(jars, "_download", raced)
    assert (fetch_jars(tmp_path) / "kafka.jar").read_bytes() == b"PK of the other"
