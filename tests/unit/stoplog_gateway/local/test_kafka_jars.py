"""Kafka's jars: downloaded completely or not at all, from any Maven repository, with progress."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stoplog_gateway.local import kafka_jars as jars
from stoplog_gateway.local.kafka_jars import (
    KAFKA_VERSION,
    Download,
    JarsUnavailable,
    OnProgress,
    fetch_jars,
    jars_folder,
    read_lock,
)

from tests.support.broker import CHECKOUT
from tests.support.maven_mirror import add_jar, create_ca, serving_repository

PATHS = ("org/apache/kafka/kafka/1/kafka-1.jar", "org/slf4j/slf4j-api/2/slf4j-api-2.jar")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Maven repository with two files, which are all jars of the list."""
    folder = tmp_path / "repository"
    lock = tmp_path / "jars.lock"
    listed = [add_jar(folder, path) for path in PATHS]
    lock.write_text("".join(f"{jar.sha256} {jar.size} {jar.path}\n" for jar in listed))
    monkeypatch.setattr(jars, "LOCK", lock)
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


def test_list_of_jars_has_one_client_library_of_the_version_of_kafka() -> None:
    listed = {jar.path.rpartition("/")[2] for jar in read_lock()}
    assert {f"kafka_2.13-{KAFKA_VERSION}.jar", f"kafka-clients-{KAFKA_VERSION}.jar"} <= listed
    assert len([name for name in listed if name.startswith("kafka-clients-")]) == 1
    assert listed == names(fetch_jars(CHECKOUT / ".stoplog"))


def test_fetch_from_a_mirror_returns_all_jars_and_shows_progress(home: Path, repository: Path) -> None:
    shown: list[Download] = []
    with serving_repository(repository) as url:
        folder = fetch_jars(home, mirror=f"{url}/", on_progress=shown.append)

    assert folder == jars_folder(home)
    assert names(folder) == {"kafka-1.jar", "slf4j-api-2.jar"}
    size = sum(jar.stat().st_size for jar in folder.iterdir())
    assert shown[-1] == Download(jars=2, all_jars=2, received=size, size=size)
    assert shown[-1].share == 1
    assert [step.received for step in shown] == sorted(step.received for step in shown)


def test_fetch_with_jars_there_downloads_nothing(home: Path) -> None:
    jars_folder(home).mkdir(parents=True)
    assert fetch_jars(home, mirror="http://127.0.0.1:1") == jars_folder(home)


@pytest.mark.needs("openssl")
def test_fetch_from_a_server_whose_ca_only_the_system_trusts_succeeds(
    home: Path, repository: Path, tmp_path: Path
) -> None:
    ca, certificate = create_ca(tmp_path)
    # For OpenSSL, these are the certificates of the system. httpx would trust them without truststore, but it
    # reads the variable from os.environ, which does not have it.
    os.putenv("SSL_CERT_FILE", str(ca))
    try:
        with serving_repository(repository, certificate) as url:
            assert len(names(fetch_jars(home, mirror=url))) == 2
    finally:
        os.unsetenv("SSL_CERT_FILE")


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
        pytest.raises(
            JarsUnavailable, match=rf"from {url} .*404 File not found.*STOPLOG_MAVEN_MIRROR.*STOPLOG_KAFKA"
        ),
    ):
        fetch_jars(home, mirror=url)


def test_fetch_of_another_file_than_listed_leaves_nothing(home: Path, repository: Path) -> None:
    (repository / PATHS[0]).write_text("something else")
    with (
        serving_repository(repository) as url,
        pytest.raises(JarsUnavailable, match=r"digest of kafka-1\.jar is not that of the original"),
    ):
        fetch_jars(home, mirror=url)
    assert list((home / "kafka").iterdir()) == []


def test_fetch_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(repository: str, folder: Path, on_progress: OnProgress) -> None:
        (folder / "half.jar").write_bytes(b"PK")
        raise OSError("no network")

    monkeypatch.setattr(jars, "_download_all", cut_off)
    with pytest.raises(JarsUnavailable, match=r"no network.*STOPLOG_KAFKA"):
        fetch_jars(tmp_path)

    assert not jars_folder(tmp_path).exists()
    assert list((tmp_path / "kafka").iterdir()) == []


def test_fetch_beside_another_process_takes_its_jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raced(repository: str, folder: Path, on_progress: OnProgress) -> None:
        (folder / "kafka.jar").write_bytes(b"PK")
        jars_folder(tmp_path).mkdir()
        (jars_folder(tmp_path) / "kafka.jar").write_bytes(b"PK of the other")

    monkeypatch.setattr(jars, "_download_all", raced)
    assert (fetch_jars(tmp_path) / "kafka.jar").read_bytes() == b"PK of the other"
