"""What routes take from the URL, and from the application."""

from __future__ import annotations

from functools import partial
from typing import Annotated
from urllib.parse import unquote_to_bytes

from fastapi import Depends, Path, Query, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.convertors import Convertor, register_url_convertor

from stoplog.client.limiter import Limiter
from stoplog.errors import InvalidId
from stoplog.policy import check_id
from stoplog_gateway.settings import GatewaySettings


class _IdConvertor(Convertor[str]):
    """Everything up to the end. Starlette's ``path`` would drop a line feed there, and change another id."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", _IdConvertor())

ClientId = Annotated[
    str,
    Path(description="The client, percent-encoded; a slash may stay as it is.", examples=["alice"]),
    AfterValidator(partial(check_id, field="client_id")),
]
PlanId = Annotated[
    str,
    Path(description="The plan, percent-encoded; a slash may stay as it is.", examples=["free"]),
    AfterValidator(partial(check_id, field="plan")),
]


class ResourceQuery(BaseModel):
    """``?resource=`` and nothing else: a misspelled one would change the limits of everything."""

    model_config = ConfigDict(extra="forbid")

    resource: Annotated[str, AfterValidator(partial(check_id, field="resource"))] | None = Field(
        None, description="What is limited apart from the rest, with limits and counters of its own."
    )


Resource = Annotated[ResourceQuery, Query()]


class CheckQuery(ResourceQuery):
    """What a check says beside its client."""

    plan: Annotated[str, AfterValidator(partial(check_id, field="plan"))] | None = Field(
        None, description="Whose limits hold if the client has none of its own."
    )


async def require_utf8(request: Request) -> None:
    """A dependency of routes with ids in their URL.

    The server replaces bytes that are not UTF-8, which would make one id of many.

    Raises:
        InvalidId: the path or the query is not UTF-8.
    """
    for field, raw in (("path", request.scope["raw_path"]), ("query", request.scope["query_string"])):
        try:
            unquote_to_bytes(raw).decode()
        except UnicodeDecodeError as exc:
            raise InvalidId(field, "not UTF-8", "percent-encode the UTF-8 of the id") from exc


async def _limiter(request: Request) -> Limiter:
    limiter: Limiter = request.app.state.limiter
    return limiter


Store = Annotated[Limiter, Depends(_limiter)]


async def _legacy(request: Request) -> bool:
    settings: GatewaySettings = request.app.state.settings
    return settings.legacy_headers


LegacyHeaders = Annotated[bool, Depends(_legacy)]
