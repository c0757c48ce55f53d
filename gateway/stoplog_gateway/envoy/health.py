"""gRPC's health protocol (grpc.health.v1), which Envoy, Kubernetes and grpc-health-probe use."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio

from stoplog_gateway.envoy.messages import SERVICE, HealthCheckRequest, HealthCheckResponse

HEALTH_SERVICE: Final = "grpc.health.v1.Health"
SERVING: Final = 1
NOT_SERVING: Final = 2
SERVICE_UNKNOWN: Final = 3

_WATCH_S: Final = 0.5
"""Seconds between two looks at the readiness while a caller watches it."""

IsReady = Callable[[], Awaitable[bool]]


class HealthService:
    """Answer whether this process should receive calls: what ``/readyz`` answers.

    Args:
        is_ready: Returns whether the process should receive calls.
    """

    def __init__(self, is_ready: IsReady) -> None:
        self._is_ready = is_ready

    def handler(self) -> Any:
        """Return the service for a gRPC server."""
        coding: Any = {
            "request_deserializer": HealthCheckRequest.FromString,
            "response_serializer": HealthCheckResponse.SerializeToString,
        }
        return grpc.method_handlers_generic_handler(
            HEALTH_SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self._check, **coding),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **coding),
            },
        )

    async def _status(self, service: str) -> int:
        if service not in ("", SERVICE, HEALTH_SERVICE):
            return SERVICE_UNKNOWN
        return SERVING if await self._is_ready() else NOT_SERVING

    async def _check(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        status = await self._status(request.service)
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"use {SERVICE} or no name")
        return HealthCheckResponse(status=status)

    async def _watch(self, request: Any, _: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        sent = None
        while True:
            status = await self._status(request.service)
            if status != sent:
                sent = status
                yield HealthCheckResponse(status=status)
            await asyncio.sleep(_WATCH_S)
