"""Envoy's rate limit service with tracing on."""

from __future__ import annotations

from typing import Any

import grpc.aio

from stoplog.client.tracing import going_on
from stoplog.tracing import FIELDS
from stoplog_gateway.envoy.server import Server


class TracedServer(Server):
    """A server whose spans go on with the trace that a call's metadata name."""

    async def _should_rate_limit(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        metadata = context.invocation_metadata() or ()
        # Only what is named in "-bin" is bytes.
        with going_on({name: str(value).encode() for name, value in metadata if name in FIELDS}):
            return await super()._should_rate_limit(request, context)
