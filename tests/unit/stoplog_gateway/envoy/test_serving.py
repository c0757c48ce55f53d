"""Starting the service: with and without the extra, and on which address."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError
from stoplog_gateway.envoy import claim_envoy_address, envoy_server
from stoplog_gateway.envoy.mapping import DescriptorMapping
from stoplog_gateway.ports import CannotListen, free_port
from stoplog_gateway.settings import GatewaySettings

from stoplog.errors import SettingsError
from tests.support.fake_limiter import FakeLimiter

MODULES = tuple(f"stoplog_gateway.envoy.{name}" for name in ("messages", "response", "service", "server"))


@pytest.mark.parametrize("package", ["grpc", "google.protobuf"])
def test_envoy_server_without_the_extra_raises_with_a_remedy(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in MODULES:
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match=rf"no {package}.*pip install 'stoplog\[envoy\]'"):
        envoy_server(
            GatewaySettings(envoy="127.0.0.1:8081"),
            FakeLimiter(),
            DescriptorMapping(),
            shared=False,
            is_ready=FakeLimiter().is_ready,
        )


def test_claimed_address_cannot_be_claimed_by_another_gateway() -> None:
    address = f"127.0.0.1:{free_port()}"
    sockets = claim_envoy_address(address)
    with pytest.raises(CannotListen, match=f"STOPLOG_ENVOY={address} "):
        claim_envoy_address(address)
    for sock in sockets:
        sock.close()


def test_envoy_server_without_an_address_is_none() -> None:
    assert (
        envoy_server(
            GatewaySettings(),
            FakeLimiter(),
            DescriptorMapping(),
            shared=False,
            is_ready=FakeLimiter().is_ready,
        )
        is None
    )


@pytest.mark.parametrize("address", ["8081", "127.0.0.1", "127.0.0.1:0", "host:port", ":8081", "a b:80"])
def test_settings_refuse_an_address_without_host_or_port(address: str) -> None:
    with pytest.raises(ValidationError, match="set one such as"):
        GatewaySettings(envoy=address)


@pytest.mark.parametrize("address", ["127.0.0.1:8081", "0.0.0.0:8081", "[::1]:8081", "localhost:65535"])
def test_settings_accept_host_names_and_ip_addresses(address: str) -> None:
    assert GatewaySettings(envoy=address).envoy == address


def test_gateway_without_envoy_imports_neither_grpc_nor_protobuf() -> None:
    # Besides, gRPC must not be loaded before the processes are forked.
    names = ("grpc", "google.protobuf")
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({names}))\n"
    script = (
        f"{blocked}import stoplog_gateway.cli, stoplog_gateway.server.prefork, stoplog_gateway.server.server"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
