"""The requests that `stoplog up` suggests when it is ready. They work as they are printed."""

from __future__ import annotations

import shlex
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from stoplog_gateway.access.local_callers import is_loopback
from stoplog_gateway.access.local_token import TOKEN_FILE
from stoplog_gateway.cli.gateway_options import gateway_options
from stoplog_gateway.cli.http_client import DEFAULT_URL
from stoplog_gateway.ports import url_of
from stoplog_gateway.settings import GatewaySettings

_CONNECT_S: Final = 5.0


class Trust(NamedTuple):
    """How a client on this machine can verify a gateway's certificate.

    Attributes:
        url: The gateway's URL, with a host that the certificate names.
        ca_file: CA certificates; ``None`` for those of the system.
    """

    url: str
    ca_file: Path | None


def first_requests(urls: list[str], settings: GatewaySettings) -> Iterator[str]:
    """Yield lines for the operator: the URL of the first gateway, two requests to try, and the other URLs.

    Args:
        urls: URLs of the gateways. The requests use the first one.
        settings: Settings of the gateways.
    """
    yield f"stoplog is ready: {urls[0]}"
    trust = find_trust(urls[0], settings) if settings.url_scheme == "https" else Trust(urls[0], None)
    url = urls[0] if trust is None else trust.url
    tls = _tls_options(trust)
    token_file = _token_file(settings)
    set_limits, check = f"stoplog limits set alice 5/minute{tls}", f"curl {url}/v1/check{tls}"
    if url != DEFAULT_URL:
        set_limits += f" --url {url}"
    if token_file is not None and token_file.resolve() != Path(".stoplog", TOKEN_FILE).resolve():
        set_limits += f" --token-file {shlex.quote(str(token_file))}"
    if token_file is not None and settings.check_token == "required":
        check += f' -H "Authorization: Bearer $(cat {shlex.quote(str(token_file))})"'
    yield f"  {set_limits}"
    yield f"  {check} -H 'Content-Type: application/json' -d '{{\"client_id\": \"alice\"}}'"
    if trust is None:
        yield (
            f"  Clients here cannot verify {settings.tls_cert_file}: use a host that it names instead of "
            f"{urlsplit(url).hostname}, and set STOPLOG_CA_FILE to the file of its CA."
        )
    if len(urls) > 1:
        yield f"more gateways: {' '.join(urls[1:])}"


def find_trust(url: str, settings: GatewaySettings) -> Trust | None:
    """Return how clients on this machine can verify the gateway at *url*; ``None`` if they cannot.

    A self-signed certificate is its own CA.
    """
    given = gateway_options().ca_file
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    for ca_file in (given,) if given is not None else (None, settings.tls_cert_file):
        for host in dict.fromkeys((address.hostname, *_names_of(address.hostname))):
            if _verifies(address.hostname, address.port, host, ca_file):
                return Trust(url_of(host, address.port, "https"), ca_file)
    return None


def _names_of(host: str) -> tuple[str, ...]:
    return ("localhost",) if is_loopback(host) else ()


def _verifies(address: str, port: int, host: str, ca_file: Path | None) -> bool:
    """Return whether the certificate of the server at *address* is valid for *host*."""
    options = gateway_options()
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if options.cert_file is not None:
            context.load_cert_chain(options.cert_file, options.key_file)
        with (
            socket.create_connection((address, port), _CONNECT_S) as connection,
            context.wrap_socket(connection, server_hostname=host),
        ):
            return True
    except OSError:  # ssl.SSLError is one, too
        return False


def _tls_options(trust: Trust | None) -> str:
    """Return the options of a command that calls a gateway with TLS. curl and Stoplog have the same ones."""
    options = gateway_options()
    if trust is None or not trust.url.startswith("https:"):
        return ""
    files = {"--cacert": trust.ca_file, "--cert": options.cert_file, "--key": options.key_file}
    return "".join(f" {name} {shlex.quote(str(file))}" for name, file in files.items() if file is not None)


def _token_file(settings: GatewaySettings) -> Path | None:
    """Return the file with a token of the gateway; ``None`` if the operator has not named one."""
    if settings.tokens_file is None:
        return settings.home / TOKEN_FILE
    return gateway_options().token_file
