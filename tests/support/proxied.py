"""A proxy between a caller and an application. The proxy sends checks to a gateway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import httpx
from stoplog_gateway.ports import is_free

from tests.support.system import Gateway, Process, eventually
from tests.support.upstream import Upstream

PUBLIC_HOST: Final = "shop.example.com"
"""The host that callers name. A gateway on loopback serves it only on the routes for proxies."""


class Proxied(NamedTuple):
    """The gateway, the application behind the proxy, and an HTTP client that sends :data:`PUBLIC_HOST`."""

    gateway: Gateway
    app: Upstream
    http: httpx.Client


@contextmanager
def running_proxy(proxy: Process, port: int, gateway: Gateway, app: Upstream) -> Iterator[Proxied]:
    """Run *proxy*, which listens on *port*, until the block ends."""
    proxy.start()
    try:
        # All tests share the system and the client id that the proxies send: forget earlier charges.
        gateway.http.post("/v1/clients/127.0.0.1/reset").raise_for_status()
        eventually("the proxy listens", lambda: not is_free(port), on_failure=proxy.tail)
        url, headers = f"http://127.0.0.1:{port}", {"host": PUBLIC_HOST}
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as http:
            yield Proxied(gateway, app, http)
    finally:
        assert proxy.stop() == 0
