"""What is served at all: without the extra, and where."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError
from stoplog_gateway.envoy import claimed_for_envoy, envoy_server
from stoplog_gateway.envoy.mapping import Mapping
from stoplog_gateway.ports import CannotListen, free_port

from stoplog.client.settings import Settings
from stoplog.errors import SettingsError
from tests.support.fake_limiter import FakeLimiter

MODULES = ("stoplog_gateway.envoy.messages", "stoplog_gateway.envoy.service", "stoplog_gateway.envoy.server")


@pytest.mark.parametrize("package", ["grpc", "google.protobuf"])
def test_without_the_extra_the_remedy_is_said(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match=rf"no {package}.*pip install '/path/to/stoplog\[envoy\]'"):
        envoy_server(Settings(envoy="127.0.0.1:8081"), FakeLimiter(), Mapping(), shared=False)


def test_processes_of_one_gateway_hold_their_address_against_others() -> None:
    address = f"127.0.0.1:{free_port()}"
    sockets = claimed_for_envoy(address)
    with pytest.raises(CannotListen, match=f"STOPLOG_ENVOY={address} "):
        claimed_for_envoy(address)
    for sock in sockets:
        sock.close()


def test_nothing_is_served_unless_it_was_asked_for() -> None:
    assert envoy_server(Settings(), FakeLimiter(), Mapping(), shared=False) is None


@pytest.mark.parametrize("address", ["8081", "127.0.0.1", "127.0.0.1:0", "host:port", ":8081", "a b:80"])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(ValidationError, match="give one such as"):
        Settings(envoy=address)


@pytest.mark.parametrize("address", ["127.0.0.1:8081", "0.0.0.0:8081", "[::1]:8081", "localhost:65535"])
def test_hosts_may_be_names_and_addresses(address: str) -> None:
    assert Settings(envoy=address).envoy == address


def test_a_gateway_that_serves_no_envoy_needs_no_extra() -> None:
    # Nor may gRPC be there before processes are forked.
    names = ("grpc", "google.protobuf")
    gone = f"import sys\nsys.modules.update(dict.fromkeys({names}))\n"
    script = (
        f"{gone}import stoplog_gateway.cli, stoplog_gateway.server.prefork, stoplog_gateway.server.server"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
