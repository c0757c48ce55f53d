"""RateLimitService v3 over gRPC, in the gateway's event loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, NoReturn, Self, TypeAlias
from urllib.parse import unquote

import grpc
import grpc.aio

from stoplog.errors import InvalidInput
from stoplog.log_throttle import LogThrottle
from stoplog_gateway.access.control import AccessControl, Refusal, proxy_token
from stoplog_gateway.access.refusals import MISSING_SCOPE, NO_TOKEN
from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.access.tls import TlsFiles
from stoplog_gateway.envoy import cannot_listen
from stoplog_gateway.envoy.call import call_of
from stoplog_gateway.envoy.health import HealthService, IsReady
from stoplog_gateway.envoy.messages import METHOD, SERVICE, RateLimitRequest
from stoplog_gateway.envoy.service import RateLimitService
from stoplog_gateway.http.connections import ConnectionLimits
from stoplog_gateway.http.turns import Turns

log: Final = logging.getLogger(__name__)

MAX_MESSAGE: Final = 1 << 20
"""Maximum bytes of a request, which parses in a few milliseconds.

Envoy allows traffic whose rate limit request fails, so API callers must not be able to exceed the maximum. It
is far above the 60 KiB of header fields that Envoy accepts."""

_AGE_GRACE_MS: Final = 10_000
"""Milliseconds that calls have to finish on a connection that has reached its maximum age."""

_LOG_PAUSE_S: Final = 60.0
_REMEDY: Final = "send the metadata key stoplog-token; `stoplog tokens add` makes tokens"

ContinueTrace: TypeAlias = Callable[[Iterable[tuple[str, str | bytes]]], AbstractContextManager[None]]


async def _always() -> bool:
    return True


class EnvoyServer:
    """Serve within ``async with``.

    Args:
        address: ``host:port`` to listen on.
        service: Answers the requests.
        grace_s: Seconds that calls in flight have to finish when the server stops.
        bounds: Bounds of the connections. gRPC closes what exceeds them itself, so the gateway does not
            count it.
        max_age_s: Seconds after which a connection ends. Then the caller connects again, perhaps to another
            gateway.
        is_ready: Returns whether callers should send calls, for the health service.
        shared: Allow other processes that set this flag too to listen on the same address.
        continue_trace: Continues the trace that a call's metadata name; ``None`` if tracing is off.
        turns: Shares the event loop between requests of HTTP and gRPC. By default, there is always time.
        access: Decides about each call. By default, every call is permitted.
        tls: Certificates of the server; ``None`` for no TLS.
    """

    def __init__(
        self,
        address: str,
        service: RateLimitService,
        *,
        grace_s: float,
        shared: bool,
        bounds: ConnectionLimits | None = None,
        max_age_s: float = 300,
        is_ready: IsReady = _always,
        continue_trace: ContinueTrace | None = None,
        turns: Turns | None = None,
        access: AccessControl | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        self._address = address
        self._service = service
        self._grace_s = grace_s
        self._shared = shared
        self._bounds = bounds or ConnectionLimits()
        self._max_age_s = max_age_s
        self._health = HealthService(is_ready)
        self._continue_trace = continue_trace
        self._throttle = LogThrottle(_LOG_PAUSE_S)
        self._turns = turns or Turns()
        self._access = access or AccessControl()
        self._tls = tls

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            CannotListen: The address cannot be used.
        """
        # gRPC sets SO_REUSEPORT by default: a second gateway on the same address would silently take half of
        # the connections.
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", int(self._shared)),
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_allowed_incoming_connections", self._bounds.max_open),
                # Also the time until the first settings of HTTP/2 have arrived.
                ("grpc.server_handshake_timeout_ms", int(self._bounds.head_s * 1_000)),
                # A connection without calls. The age below ends calls whose message does not arrive.
                ("grpc.max_connection_idle_ms", int(self._bounds.keepalive_s * 1_000)),
                ("grpc.max_connection_age_ms", int(self._max_age_s * 1_000)),
                ("grpc.max_connection_age_grace_ms", _AGE_GRACE_MS),
            ]
        )
        handler: Any = grpc.unary_unary_rpc_method_handler(
            self._should_rate_limit if self._continue_trace is None else self._handle_traced,
            request_deserializer=RateLimitRequest.FromString,
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}), self._health.handler())
        )
        try:
            if self._tls is None:
                self._server.add_insecure_port(self._address)
            else:
                self._server.add_secure_port(self._address, _credentials(self._tls))
        except RuntimeError as exc:
            raise cannot_listen(self._address) from exc
        await self._server.start()
        log.info("Envoy's rate limit service listens on %s", self._address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Accept no more calls, finish those in flight, and end the connections."""
        await self._server.stop(self._grace_s)

    async def _handle_traced(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        assert self._continue_trace is not None
        with self._continue_trace(context.invocation_metadata() or ()):
            return await self._should_rate_limit(request, context)

    async def _should_rate_limit(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        service = self._service
        if self._access.check_needs_token and (refusal := await self._refusal(context)) is not None:
            if (denial := service.denial(request.domain)) is not None:
                return service.encode(denial)  # after an error, Envoy could allow the request
            await _abort(context, *refusal)
        try:
            if not self._turns.admits_check():
                return service.encode(await service.answer_at_once(request))
            return service.encode(await service.decide(call_of(request)))
        except InvalidInput as exc:
            if (denial := service.denial_after_failure(request.domain)) is not None:
                if (suppressed := self._throttle.admit()) is not None:
                    log.error("a call of Envoy failed closed: %s%s", exc, suppressed)
                return service.encode(denial)
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        except Exception:
            log.exception("bug in %s", METHOD)
            if (denial := service.denial_after_failure(request.domain)) is not None:
                return service.encode(denial)
            await _abort(context, grpc.StatusCode.INTERNAL, "the gateway has a bug; see the gateway's log")

    async def _refusal(
        self, context: grpc.aio.ServicerContext[Any, Any]
    ) -> tuple[grpc.StatusCode, str] | None:
        """Return status and text for a call without a token that may check; ``None`` if it has one."""
        text = _token_in(context.invocation_metadata() or ())
        decision = self._access.decide(Scope.CHECK, text)
        if not isinstance(decision, Refusal):
            return None
        name = decision.token.name if decision.token is not None else None
        await self._access.refusals.add(decision.reason, Scope.CHECK, _address(context.peer()), name)
        if decision.reason == MISSING_SCOPE:
            return grpc.StatusCode.PERMISSION_DENIED, f"the token {name} lacks the scope check"
        why = "this call needs a token" if decision.reason == NO_TOKEN else "the token is unknown"
        return grpc.StatusCode.UNAUTHENTICATED, f"{why}: {_REMEDY}"


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that follow *tls*: gRPC asks for new ones at each handshake, on its own thread."""
    given = tls.pem

    def configuration(pem: tuple[bytes, bytes, bytes | None]) -> Any:
        cert, key, client_ca = pem
        return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca)

    def changed() -> Any:
        nonlocal given
        if given is tls.pem:
            return None
        given = tls.pem
        return configuration(given)

    return grpc.dynamic_ssl_server_credentials(configuration(given), changed, tls.needs_client_certificate)


def _token_in(metadata: Iterable[tuple[str, str | bytes]]) -> bytes | None:
    # gRPC delivers values as bytes only for names that end in "-bin".
    return proxy_token((name.encode(), str(value).encode()) for name, value in metadata)


def _address(peer: str) -> str:
    """Return the IP address in the name that gRPC gives a caller.

    >>> _address("ipv4:192.0.2.1:5000"), _address("ipv6:%5B2001:db8::1%5D:5000")
    ('192.0.2.1', '2001:db8::1')
    """
    return unquote(peer.partition(":")[2]).rpartition(":")[0].strip("[]")


async def _abort(context: grpc.aio.ServicerContext[Any, Any], code: grpc.StatusCode, why: str) -> NoReturn:
    await context.abort(code, why)
    raise AssertionError("abort raises")
