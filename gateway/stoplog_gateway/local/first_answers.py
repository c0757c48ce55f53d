"""Find out whether a gateway gets its checks answered, for the end of a start."""

from __future__ import annotations

import os
import ssl

import httpx

from stoplog.errors import SettingsError
from stoplog_gateway.settings import GatewaySettings


def probe_client(settings: GatewaySettings) -> httpx.Client:
    """Return a client for :func:`reason_not_ready`.

    It does not check the gateway's certificate, which may name another host than this machine. It sends no
    secret, and the gateway is a child of this process. It presents the client certificate of the commands.

    Args:
        settings: Settings of the gateway.

    Raises:
        SettingsError: The client certificate is missing or cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if cert := os.environ.get("STOPLOG_CLIENT_CERT_FILE"):
        try:
            context.load_cert_chain(cert, os.environ.get("STOPLOG_CLIENT_KEY_FILE") or None)
        except OSError as exc:
            raise SettingsError(f"STOPLOG_CLIENT_CERT_FILE={cert} cannot be used ({exc})") from exc
    elif settings.tls_client_ca_file is not None:
        raise SettingsError(
            "with STOPLOG_TLS_CLIENT_CA_FILE, `stoplog up` needs a client certificate to see whether its "
            "gateways answer: set STOPLOG_CLIENT_CERT_FILE and STOPLOG_CLIENT_KEY_FILE"
        )
    return httpx.Client(trust_env=False, timeout=5.0, verify=context)


def reason_not_ready(client: httpx.Client, url: str) -> str | None:
    """Return why some partition never answered the gateway at *url*; ``None`` if all of them did.

    The route needs no token, whatever the settings of the gateway are.
    """
    try:
        response = client.get(f"{url}/readyz", params={"strict": "1"})
        return None if response.is_success else str(response.json()["detail"])
    except (httpx.HTTPError, ValueError, LookupError):
        return "the gateway starts"
