from __future__ import annotations

import pytest
from stoplog_gateway.access.local_callers import is_loopback


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
)
def test_is_loopback_of_a_loopback_host_is_true(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "128.0.0.1", "localhost.example", "127.1", "2130706433"]
)
def test_is_loopback_of_another_host_is_false(host: str) -> None:
    assert not is_loopback(host)
