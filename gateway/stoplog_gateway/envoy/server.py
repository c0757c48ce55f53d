"""RateLimitService v3 over gRPC, in the gateway's event loop."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import grpc
import grpc.aio

from stoplog.errors import InvalidInput
from stoplog_gateway.envoy import not_there
from stoplog_gateway.envoy.messages import METHOD, SERVICE, RateLimitRequest, RateLimitResponse
from stoplog_gateway.envoy.service import RateLimits

log: Final = logging.getLogger(__name__)

MAX_MESSAGE: Final = 1 << 20
"""Bytes of a question. Refused, it would pass Envoy: so many that a caller's header fields, 60 KiB of them at
Envoy, fit in several times, yet are parsed in some milliseconds."""


class Server:
    """Serves within ``async with``; without TLS, as Envoy's sidecars speak.

    Args:
        address: ``host:port``.
        service: What answers.
        grace_s: Questions under way have this long to be answered at the end.
        shared: Others may listen there too, if they share it as well.
    """

    def __init__(self, address: str, service: RateLimits, *, grace_s: float, shared: bool) -> None:
        self._address = address
        self._service = service
        self._grace_s = grace_s
        self._shared = shared

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            CannotListen: not there.
        """
        # By itself gRPC shares its port with whoever shares it too: a second gateway would take half of the
        # first one's callers without a word.
        self._server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", int(self._shared)),
                ("grpc.max_receive_message_length", MAX_MESSAGE),
            ]
        )
        handler = grpc.unary_unary_rpc_method_handler(
            self._should_rate_limit,
            request_deserializer=RateLimitRequest.FromString,
            response_serializer=RateLimitResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),)
        )
        try:
            self._server.add_insecure_port(self._address)
        except RuntimeError as exc:
            raise not_there(self._address) from exc
        await self._server.start()
        log.info("Envoy's rate limit service on %s", self._address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Answer what is under way, and stop."""
        await self._server.stop(self._grace_s)

    async def _should_rate_limit(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await self._service.decide(request)
        except InvalidInput as exc:
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(exc))
        except Exception:
            log.exception("a bug in %s", METHOD)
            await _refuse(
                context, grpc.StatusCode.INTERNAL, "the gateway failed in a way it should not; see its log"
            )


async def _refuse(context: grpc.aio.ServicerContext[Any, Any], code: grpc.StatusCode, why: str) -> NoReturn:
    await context.abort(code, why)
    raise AssertionError("abort raises")
