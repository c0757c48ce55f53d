"""Envoy's rate limit service (RateLimitService v3), over gRPC and as JSON.

What imports protobuf or gRPC, which only the extra ``envoy`` installs, is imported when it is asked for.
"""

from __future__ import annotations

from socket import socket
from typing import TYPE_CHECKING, Final

from stoplog.client.limiter import Limiter
from stoplog.client.settings import Settings
from stoplog.errors import SettingsError
from stoplog_gateway.envoy.mapping import Mapping
from stoplog_gateway.ports import CannotListen, claimed

if TYPE_CHECKING:
    from stoplog_gateway.envoy.server import Server
    from stoplog_gateway.envoy.service import RateLimits

REMEDY: Final = "install Stoplog with it: pip install '/path/to/stoplog[envoy]'"


def rate_limits(limiter: Limiter, mapping: Mapping, *, legacy_headers: bool) -> RateLimits:
    """The service, whatever it is reached by; arguments as of :class:`~stoplog_gateway.envoy.service.RateLimits`.

    Raises:
        SettingsError: the extra is not installed.
    """
    try:
        from stoplog_gateway.envoy.service import RateLimits
    except ModuleNotFoundError as exc:
        raise _missing(exc) from exc
    return RateLimits(limiter, mapping, legacy_headers=legacy_headers)


def envoy_server(settings: Settings, limiter: Limiter, mapping: Mapping, *, shared: bool) -> Server | None:
    """The gRPC server on ``settings.envoy``, not started yet; ``None`` if there is to be none.

    Args:
        settings: Of the gateway.
        limiter: What is asked.
        mapping: Who is meant by a descriptor.
        shared: Others of this gateway's processes listen there too.

    Raises:
        SettingsError: the extra is not installed, or tracing is on and its extra is not.
    """
    if settings.envoy is None:
        return None
    service = rate_limits(limiter, mapping, legacy_headers=settings.legacy_headers)
    try:
        from stoplog_gateway.envoy.server import Server
    except ModuleNotFoundError as exc:
        raise _missing(exc) from exc
    kind = Server
    if settings.tracing:
        from stoplog_gateway.envoy.tracing import TracedServer

        kind = TracedServer
    return kind(settings.envoy, service, grace_s=settings.deadline_ms / 1_000, shared=shared)


def claimed_for_envoy(address: str) -> list[socket]:
    """Sockets that hold *address* against others who would share it (:func:`stoplog_gateway.ports.claimed`).

    Raises:
        CannotListen: another has it.
    """
    host, _, port = address.rpartition(":")
    try:
        return claimed(int(port), host.strip("[]"))
    except CannotListen as exc:
        raise not_there(address) from exc


def not_there(address: str) -> CannotListen:
    """Why the service does not run."""
    return CannotListen(
        f"STOPLOG_ENVOY={address} cannot be listened on: set it to an address of this machine with a free "
        f"port, or stop what listens there"
    )


def _missing(exc: ModuleNotFoundError) -> SettingsError:
    return SettingsError(f"Envoy's rate limit service needs the extra `envoy` (no {exc.name}): {REMEDY}")
