"""The floor for gRPC: a server of grpc.aio that answers each call with the same bytes, without reading it."""

from __future__ import annotations

import sys
from typing import Any, Final

import grpc
import grpc.aio
import uvloop
from stoplog_gateway.envoy.messages import METHOD, OK, SERVICE, RateLimitResponse

_RESPONSE: Final[bytes] = RateLimitResponse(overall_code=OK).SerializeToString()


async def main(address: str) -> None:
    """Serve until the process is stopped."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler: Any = grpc.unary_unary_rpc_method_handler(_answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


async def _answer(_: bytes, __: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    return _RESPONSE


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
