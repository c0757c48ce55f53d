"""The proxies of the examples: nginx and Envoy, run with the files in docker/nginx and docker/envoy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stoplog_gateway.ports import free_port

from tests.support.broker import CHECKOUT
from tests.support.programs import path_of
from tests.support.proxied import Proxied, running_proxy
from tests.support.system import Gateway, Process
from tests.support.upstream import upstream

NGINX = CHECKOUT / "docker" / "nginx" / "nginx.conf"
ENVOY = CHECKOUT / "docker" / "envoy"


def edited(text: str, edits: Mapping[str, str]) -> str:
    """Return *text* with each key of *edits*, which occurs once, replaced by its value."""
    for there, here in edits.items():
        assert text.count(there) == 1, f"{there!r} occurs {text.count(there)} times"
        text = text.replace(there, here)
    return text


@contextmanager
def running_nginx(
    folder: Path, gateway: Gateway, edits: Mapping[str, str] | None = None
) -> Iterator[Proxied]:
    """Run nginx with the example and *gateway*, with longer timeouts and the *edits* of its configuration."""
    port = free_port()
    with upstream() as app:
        text, patience = re.subn(r"(?<=_timeout )\d+ms;", "30s;", edited(NGINX.read_text(), edits or {}))
        assert patience == 2
        ports = {8000: port, 8080: gateway.port, 3000: app.server_port}
        text = edited(text, {f"127.0.0.1:{there};": f"127.0.0.1:{here};" for there, here in ports.items()})
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
        config = folder / "nginx.conf"
        config.write_text(text.replace("http {", f"http {{\naccess_log off;\n{temporary}"))
        options = f"daemon off; pid {folder}/nginx.pid;"
        nginx = Process(
            "nginx",
            [path_of("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(config), "-g", options],
            env={},
            log=folder / "nginx.log",
        )
        with running_proxy(nginx, port, gateway, app) as running:
            yield running


@contextmanager
def running_envoy(
    example: str,
    folder: Path,
    gateway: Gateway,
    stoplog: Mapping[int, int],
    edits: Mapping[str, str] | None = None,
) -> Iterator[Proxied]:
    """Run Envoy with *example* and *gateway*, with longer timeouts and the *edits* of its configuration.

    *stoplog* maps the port in the example to the real port.
    """
    port = free_port()
    with upstream() as app:
        ports = {10000: port, 3000: app.server_port, **stoplog}
        changes = {f"port_value: {there}}}": f"port_value: {here}}}" for there, here in ports.items()}
        text = edited((ENVOY / example).read_text(), {**(edits or {}), " timeout: 0.5s\n": " timeout: 30s\n"})
        config = folder / example
        config.write_text(edited(text, changes))
        options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        envoy = Process(
            "envoy", [path_of("envoy"), "-c", str(config), *options], env={}, log=folder / "envoy.log"
        )
        with running_proxy(envoy, port, gateway, app) as running:
            yield running
