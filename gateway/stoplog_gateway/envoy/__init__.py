"""Envoy's rate limit service (RateLimitService v3), over gRPC and as JSON.

This module imports protobuf and gRPC only when they are needed: only the extra ``envoy`` installs them.
"""

from __future__ import annotations

from socket import socket
from typing import TYPE_CHECKING, Final

from stoplog.client.limiter import Limiter
from stoplog.errors import SettingsError
from stoplog_gateway.access.control import AccessControl
from stoplog_gateway.access.tls import TlsFiles
from stoplog_gateway.envoy.mapping import DescriptorMapping
from stoplog_gateway.http.turns import Turns
from stoplog_gateway.ports import CannotListen, claim_port
from stoplog_gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from stoplog_gateway.envoy.health import IsReady
    from stoplog_gateway.envoy.server import ContinueTrace, EnvoyServer
    from stoplog_gateway.envoy.service import RateLimitService
    from stoplog_gateway.http.connections import ConnectionLimits

REMEDY: Final = "install Stoplog with the extra: pip install 'stoplog[envoy]'"


def rate_limit_service(
    limiter: Limiter, mapping: DescriptorMapping, *, legacy_headers: bool
) -> RateLimitService:
    """Return a :class:`~stoplog_gateway.envoy.service.RateLimitService`; it takes the same arguments.

    Raises:
        SettingsError: The extra ``envoy`` is not installed.
    """
    try:
        from stoplog_gateway.envoy.service import RateLimitService
    except ModuleNotFoundError as exc:
        raise _missing_extra(exc) from exc
    return RateLimitService(limiter, mapping, legacy_headers=legacy_headers)


def envoy_server(
    settings: GatewaySettings,
    limiter: Limiter,
    mapping: DescriptorMapping,
    *,
    shared: bool,
    is_ready: IsReady,
    bounds: ConnectionLimits | None = None,
    turns: Turns | None = None,
    access: AccessControl | None = None,
    tls: TlsFiles | None = None,
) -> EnvoyServer | None:
    """Return the gRPC server for ``settings.envoy``, not started yet; ``None`` if that is not set.

    Args:
        settings: The gateway's settings.
        limiter: Limiter that answers the checks.
        mapping: Maps descriptors to clients.
        shared: Other processes of this gateway listen on the same address.
        is_ready: Returns whether callers should send calls, for the health service.
        bounds: Bounds of the connections.
        turns: Shares the event loop between requests of HTTP and gRPC. By default, there is always time.
        access: Decides about each call. By default, every call is permitted.
        tls: Certificates of the server; ``None`` for no TLS.

    Raises:
        SettingsError: The extra ``envoy`` is not installed, or tracing is on and its extra is not installed.
    """
    if settings.envoy is None:
        return None
    service = rate_limit_service(limiter, mapping, legacy_headers=settings.legacy_headers)
    try:
        from stoplog_gateway.envoy.server import EnvoyServer
    except ModuleNotFoundError as exc:
        raise _missing_extra(exc) from exc
    continue_trace: ContinueTrace | None = None
    if settings.tracing:
        from stoplog_gateway.envoy import tracing

        continue_trace = tracing.continue_trace
    return EnvoyServer(
        settings.envoy,
        service,
        grace_s=settings.deadline_ms / 1_000,
        shared=shared,
        bounds=bounds,
        max_age_s=settings.envoy_connection_age_s,
        is_ready=is_ready,
        continue_trace=continue_trace,
        turns=turns,
        access=access,
        tls=tls,
    )


def claim_envoy_address(address: str) -> list[socket]:
    """Return sockets that claim *address* for this gateway (:func:`stoplog_gateway.ports.claim_port`).

    Raises:
        CannotListen: Another gateway holds the claim.
    """
    host, _, port = address.rpartition(":")
    try:
        return claim_port(int(port), host.strip("[]"), "gateway")
    except CannotListen as exc:
        raise cannot_listen(address) from exc


def cannot_listen(address: str) -> CannotListen:
    """Return the error for an *address* that the service cannot listen on."""
    return CannotListen(
        f"STOPLOG_ENVOY={address} cannot be used: set it to an address of this machine with a free port, or "
        f"stop the server that uses it"
    )


def _missing_extra(exc: ModuleNotFoundError) -> SettingsError:
    return SettingsError(f"Envoy's rate limit service needs the extra `envoy` (no {exc.name}): {REMEDY}")
