"""nginx and Envoy with the files in docker/, in front of an upstream that answers every request alike.

Each proxy is its own upstream, on a further port, so its CPU contains that of the upstream. The client id is
in the field ``X-Client-Id`` of the request. Everything else is as in the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stoplog_gateway.ports import free_port

from tests.benchmarks.peers.environment import PeerMissing
from tests.benchmarks.peers.servers import PeerServer, running_server
from tests.support.programs import PROGRAMS
from tests.support.proxies import ENVOY, NGINX, edited

_HELLO: Final = """\
    - name: hello
      address: {socket_address: {address: 127.0.0.1, port_value: UPSTREAM}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": FILTERS.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: hello
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": FILTERS.http.router.v3.Router
                route_config:
                  virtual_hosts:
                    - name: hello
                      domains: ["*"]
                      routes:
                        - match: {prefix: /}
                          direct_response: {status: 200, body: {inline_string: hello}}
"""
_FILTER_TYPES: Final = "type.googleapis.com/envoy.extensions.filters"
_KEEP_ALIVE: Final = 'proxy_http_version 1.1; proxy_set_header Connection "";'
_FILTERS: Final = "                http_filters:\n"
_ROUTER: Final = "                  - name: envoy.filters.http.router\n"


def nginx_config(folder: Path, port: int, gateway_port: int | None) -> str:
    """Return the example's text with *port* and the gateway's, or without the limiter if there is none."""
    upstream = free_port()
    text = edited(
        NGINX.read_text(),
        {
            "127.0.0.1:8000;": f"127.0.0.1:{port};",
            "127.0.0.1:8080;": f"127.0.0.1:{gateway_port or 1};",
            "server 127.0.0.1:3000;": f"server 127.0.0.1:{upstream}; keepalive 64;",
            "proxy_pass http://app;": f"proxy_pass http://app; {_KEEP_ALIVE}",
            "X-Client-Id $remote_addr;": "X-Client-Id $http_x_client_id;",
        },
    )
    if gateway_port is None:
        text = edited(text, {"auth_request /_stoplog;": ""})
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    hello = f'server {{ listen 127.0.0.1:{upstream}; location / {{ return 200 "hello"; }} }}\n'
    options = "access_log off;\nkeepalive_requests 1000000000;\n"
    return edited(text, {"http {\n": f"http {{\n{options}{temporary}{hello}"})


def envoy_config(example: str, port: int, service_port: int | None) -> str:
    """Return *example*'s text with *port* and the service's, or without the limiter if there is none."""
    upstream = free_port()
    text = (ENVOY / example).read_text()
    there = {10000: port, 3000: upstream, (8081 if example == "envoy.yaml" else 8080): service_port or 1}
    text = edited(text, {f"port_value: {old}}}": f"port_value: {new}}}" for old, new in there.items()})
    text = text.replace(
        "remote_address: {}", "request_headers: {header_name: x-client-id, descriptor_key: client}"
    )
    text = text.replace("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "%REQ(X-CLIENT-ID)%")
    if service_port is None:
        begin = text.index(_FILTERS) + len(_FILTERS)
        text = text[:begin] + text[text.index(_ROUTER) :]
    return edited(text, {"  listeners:\n": "  listeners:\n" + _hello(upstream)})


def _hello(port: int) -> str:
    """Return the listener of the upstream."""
    return _HELLO.replace("UPSTREAM", str(port)).replace("FILTERS", _FILTER_TYPES)


@contextmanager
def bench_nginx(folder: Path, name: str, gateway_port: int | None) -> Iterator[PeerServer]:
    """Run nginx with one worker process.

    Raises:
        PeerMissing: nginx is not installed.
    """
    own, port = folder / name, free_port()
    own.mkdir()
    config = own / "nginx.conf"
    config.write_text(nginx_config(own, port, gateway_port))
    options = ["-e", "stderr", "-p", str(own), "-c", str(config), "-g", f"daemon off; pid {own}/nginx.pid;"]
    with running_server(name, [_program("nginx"), *options], port, folder) as server:
        yield server


@contextmanager
def bench_envoy(folder: Path, name: str, example: str, service_port: int | None) -> Iterator[PeerServer]:
    """Run Envoy with one worker thread.

    Raises:
        PeerMissing: Envoy is not installed.
    """
    port, config = free_port(), folder / f"{name}.yaml"
    config.write_text(envoy_config(example, port, service_port))
    options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
    with running_server(name, [_program("envoy"), "-c", str(config), *options], port, folder) as server:
        yield server


def _program(name: str) -> str:
    program = PROGRAMS[name]
    if (path := program.find()) is None:
        raise PeerMissing(f"{name} is not installed: {program.install}")
    return str(path)
