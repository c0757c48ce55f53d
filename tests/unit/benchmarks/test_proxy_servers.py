from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.benchmarks.peers.proxy_servers import envoy_config, nginx_config


def test_nginx_without_a_limiter_is_the_same_but_for_the_check() -> None:
    folder = Path("/there")
    limited, bare = nginx_config(folder, 8_001, 8_002), nginx_config(folder, 8_001, None)
    assert "auth_request /_stoplog;" in limited
    assert "server 127.0.0.1:8002;" in limited
    assert "X-Client-Id $http_x_client_id;" in limited
    assert "auth_request /_stoplog;" not in bare
    assert "listen 127.0.0.1:8001;" in bare


@pytest.mark.parametrize(
    ("example", "filters"), [("envoy.yaml", "ratelimit"), ("ext_authz.yaml", "ext_authz")]
)
def test_envoy_without_a_limiter_is_the_same_but_for_the_filter(example: str, filters: str) -> None:
    def http_filters(service_port: int | None) -> list[str]:
        listeners = yaml.safe_load(envoy_config(example, 8_001, service_port))["static_resources"][
            "listeners"
        ]
        (proxy,) = (each for each in listeners if each["name"] == "http")
        manager = proxy["filter_chains"][0]["filters"][0]["typed_config"]
        return [each["name"].rpartition(".")[2] for each in manager["http_filters"]]

    assert http_filters(8_002) == [filters, "router"]
    assert http_filters(None) == ["router"]
    text = envoy_config(example, 8_001, 8_002)
    assert "remote_address: {}" not in text
    assert "DOWNSTREAM_REMOTE_ADDRESS" not in text
