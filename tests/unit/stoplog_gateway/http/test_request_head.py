"""The host of a request and the scheme of its target. The corpus of raw requests covers the bodies."""

from __future__ import annotations

import pytest
from stoplog_gateway.http.request_head import BadHead, body_length


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"localhost",
        b"shop.example.com:443",
        b"localhost:",
        b"localhost:0",
        b"localhost:00080",
        b"localhost:65535",
        b"192.0.2.1:80",
        b"a_b~c",
        b"%2e%FF",
        b"[::]",
        b"[::1]:8080",
        b"[2001:DB8::192.0.2.1]",
        b" localhost\t",
    ],
)
def test_valid_host_is_accepted(host: bytes) -> None:
    assert body_length("1.1", b"/", [(b"host", host)]) == 0


@pytest.mark.parametrize(
    "host",
    [
        b"localhost:65536",
        b"localhost:99999",
        b"localhost:000080",
        b"localhost:-1",
        b"localhost:80:80",
        b"%",
        b"%z",
        b"%zz",
        b"localhost%2",
        b"[]",
        b"[:]",
        b"[::::]",
        b"[1::2::3]",
        b"[1:2:3:4:5:6:7:8:9]",
        b"[12345::]",
        b"[127.0.0.1]",
        b"[::1.2.3]",
        b"[::1%25lo]",
        b"[::1]:65536",
        b"[::1]80",
        b"::1",
        b"localhost\n",
    ],
)
def test_malformed_host_is_refused(host: bytes) -> None:
    with pytest.raises(BadHead, match="Host is malformed") as caught:
        body_length("1.1", b"/", [(b"host", host)])
    assert caught.value.field == "Host"


@pytest.mark.parametrize("scheme", [b"http", b"https", b"HTTP", b"Https"])
def test_target_with_scheme_of_http_is_accepted(scheme: bytes) -> None:
    assert body_length("1.1", scheme + b"://LOCALHOST:80/x", [(b"host", b"localhost:80")]) == 0


@pytest.mark.parametrize("scheme", [b"httpx", b"http+unix", b"httpss", b"xhttp", b"ftp", b"ws"])
def test_target_with_another_scheme_is_refused(scheme: bytes) -> None:
    with pytest.raises(BadHead, match="the request target is no HTTP URL"):
        body_length("1.1", scheme + b"://localhost/x", [(b"host", b"localhost")])


@pytest.mark.parametrize(
    "target", [b"http://evil/", b"http://localhost:1/", b"http://a@localhost/", b"http:///"]
)
def test_target_with_another_host_than_host_is_refused(target: bytes) -> None:
    with pytest.raises(BadHead, match="names another host"):
        body_length("1.1", target, [(b"host", b"localhost")])
