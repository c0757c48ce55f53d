"""The HTTP application: routes over one :class:`~stoplog.client.limiter.Limiter`."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi import FastAPI
from starlette.responses import Response

from stoplog import __version__
from stoplog.client.answer import Answer
from stoplog.client.cluster_status import Status
from stoplog.client.limiter import Limiter
from stoplog.client.traffic import Traffic
from stoplog_gateway.envoy.mapping import load_mapping
from stoplog_gateway.http import openapi, problems
from stoplog_gateway.http.routes import (
    authorize,
    check,
    clients,
    console,
    docs,
    health,
    limits,
    status,
    traffic,
)
from stoplog_gateway.http.routes import envoy_json as envoy
from stoplog_gateway.http.routes import limit_models as stored
from stoplog_gateway.ports import url_of
from stoplog_gateway.settings import GatewaySettings

log: Final = logging.getLogger(__name__)

_DESCRIPTION: Final = """\
A distributed rate limiter whose store is the log.

Bodies are JSON, `Content-Type: application/json`, at most 1 MiB (a list of checks 4 MiB). Whatever goes wrong
is answered with `application/problem+json` (RFC 9457): `field` names the part of the request, `remedy` what
would do, and nothing was published.

Changes need `Authorization: Bearer` where an admin token is set. Without one they are accepted on loopback
only, from programs on the same machine: a foreign `Host` or `Origin` is refused, and what a proxy says it
forwards. Not every proxy says so: behind a proxy, set `STOPLOG_ADMIN_TOKEN`.
"""

_RESOURCES: Final = (
    check.router,
    authorize.router,
    limits.router,
    clients.router,
    status.router,
    traffic.router,
    health.router,
)
_MODELS: Final = (
    check.CheckRequest,
    Answer,
    *stored.MODELS,
    *clients.MODELS,
    health.Health,
    Status,
    Traffic,
)


async def _end_process_on_failure(limiter: Limiter) -> None:
    """A gateway that can only let everything through is stopped as Ctrl-C would, to be started anew."""
    await limiter.until_failure()
    signal.raise_signal(signal.SIGTERM)


def create_app(settings: GatewaySettings, limiter: Limiter | None = None) -> FastAPI:
    """The application; its lifespan starts and stops the limiter.

    Args:
        settings: Read once, here.
        limiter: One not yet entered; made from *settings* if not given.

    Raises:
        SettingsError: the mapping of Envoy's descriptors cannot be used.
    """
    limiter = limiter or Limiter(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with limiter:
            log.info("gateway on %s, Kafka at %s", url_of(settings.host, settings.port), settings.bootstrap)
            watching = asyncio.create_task(_end_process_on_failure(limiter))
            yield
            watching.cancel()

    app = openapi.Api(
        title="Stoplog",
        version=__version__,
        description=_DESCRIPTION,
        openapi_tags=openapi.TAGS,
        default_response_class=Response,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,  # an id may end in a slash
        docs_url=None,  # gateway/stoplog_gateway/http/routes/docs.py
        redoc_url=None,
        lifespan=lifespan,
        telemetry={"tracing": False},  # its spans name paths, and those name clients
    )
    app.models, app.resources = _MODELS, _RESOURCES
    app.state.settings = settings
    app.state.limiter = limiter
    app.state.mapping = load_mapping(settings.envoy_mapping)
    for resource in _RESOURCES:
        app.include_router(resource)
    app.include_router(console.router)
    app.include_router(docs.router)
    app.include_router(envoy.router)
    problems.install(app)
    return app
