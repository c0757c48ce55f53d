"""Build the HTTP application: routes that call one :class:`~stoplog.client.limiter.Limiter`."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi import Depends, FastAPI
from starlette.responses import Response

from stoplog import __version__
from stoplog.client.answer import Answer
from stoplog.client.cluster_status import Status
from stoplog.client.limiter import Limiter
from stoplog.client.traffic import Traffic
from stoplog.identity.identity import Identity
from stoplog_gateway.access.control import AccessControl
from stoplog_gateway.envoy.mapping import load_mapping
from stoplog_gateway.http import openapi, problems
from stoplog_gateway.http.auth import RequireLocalCallers, require_scope
from stoplog_gateway.http.bugs import CatchBugs
from stoplog_gateway.http.middleware import AnswerHead
from stoplog_gateway.http.proxy_clients import ProxyClients
from stoplog_gateway.http.routes import (
    authorize,
    check,
    clients,
    console,
    docs,
    envoy_json,
    health,
    history,
    limit_models,
    limits,
    refunds,
    reservations,
    status,
    traffic,
)
from stoplog_gateway.lifecycle import Lifecycle
from stoplog_gateway.ports import url_of
from stoplog_gateway.settings import GatewaySettings

log: Final = logging.getLogger(__name__)

_DESCRIPTION: Final = """\
A distributed rate limiter whose store is a Kafka log.

Request bodies are JSON with `Content-Type: application/json`, of at most 1 MiB (4 MiB for a list of checks).
The body of an error is `application/problem+json` (RFC 9457): `field` names the part of the request that
caused it, and `remedy` suggests a solution. A request that fails with an error publishes nothing.

With a tokens file, reads and changes need `Authorization: Bearer <token>`; checks need it only with
`STOPLOG_CHECK_TOKEN=required`. Without one, the gateway accepts reads and changes only on loopback.
On loopback, it answers requests without a token only for programs on the same machine: it refuses a
foreign `Host` or `Origin`, and requests that a proxy marks as forwarded (403). Only `/v1/authorize` and
`/json` accept them. Not every proxy marks requests: behind a proxy, set `STOPLOG_TOKENS_FILE`.
"""

_ROUTERS: Final = (
    check.router,
    reservations.router,
    refunds.router,
    authorize.router,
    history.router,
    limits.router,
    clients.router,
    status.router,
    traffic.router,
    health.router,
)
_MODELS: Final = (
    check.CheckRequest,
    Answer,
    *reservations.MODELS,
    *refunds.MODELS,
    *limit_models.MODELS,
    *history.MODELS,
    *clients.MODELS,
    health.Health,
    Status,
    Traffic,
)


async def _end_process_on_failure(limiter: Limiter) -> None:
    """Stop the process if the limiter fails for good: only a restart makes it use the store again."""
    await limiter.until_failure()
    signal.raise_signal(signal.SIGTERM)


def create_app(
    settings: GatewaySettings, limiter: Limiter | None = None, access: AccessControl | None = None
) -> FastAPI:
    """Return the application. Its lifespan starts and stops the limiter.

    Args:
        settings: The gateway's settings.
        limiter: A limiter that is not started. By default, a new one with *settings*.
        access: Decides about each request. By default, a new one with *settings*.

    Raises:
        SettingsError: The file that maps Envoy's descriptors or the tokens file is invalid.
    """
    limiter = limiter or Limiter(settings)
    access = access or AccessControl.of(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with limiter:
            log.info(
                "the gateway listens on %s and uses Kafka at %s",
                url_of(settings.host, settings.port, settings.url_scheme),
                settings.bootstrap,
            )
            tasks = [
                asyncio.create_task(_end_process_on_failure(limiter)),
                asyncio.create_task(access.files.run()),
            ]
            yield
            for task in tasks:
                task.cancel()

    app = openapi.MsgspecFastAPI(
        title="Stoplog",
        version=__version__,
        description=_DESCRIPTION,
        openapi_tags=openapi.TAGS,
        default_response_class=Response,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,  # ids can end with a slash
        docs_url=None,  # routes/docs.py serves the page
        redoc_url=None,
        lifespan=lifespan,
        telemetry={"tracing": False},  # spans of the framework contain paths, and paths contain client ids
    )
    app.models, app.documented_routers = _MODELS, _ROUTERS
    app.state.settings = settings
    app.state.limiter = limiter
    app.state.access = access
    app.state.lifecycle = Lifecycle(settings.startup_s)
    app.state.proxy_clients = ProxyClients.of(settings)
    app.state.mapping = load_mapping(settings.envoy_mapping, Identity.of(settings))
    for router in (*_ROUTERS, console.router, docs.router, envoy_json.router):
        app.include_router(router, dependencies=[Depends(require_scope)])
    problems.install(app)
    app.add_middleware(CatchBugs)
    if access.loopback:
        app.add_middleware(RequireLocalCallers, access=access)
    app.add_middleware(AnswerHead)
    return app
