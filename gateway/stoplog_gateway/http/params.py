"""Parameters that routes take from the URL and from the application."""

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
from stoplog_gateway.http.openapi import ID_SCHEMA
from stoplog_gateway.settings import GatewaySettings


class _IdConvertor(Convertor[str]):
    """Match the rest of the path. Starlette's ``path`` drops a line feed at the end, which changes the id."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("id", _IdConvertor())

ClientId = Annotated[
    str,
    Path(
        description="Client id, percent-encoded. A slash can stay unencoded.",
        examples=["alice"],
        json_schema_extra=ID_SCHEMA,
    ),
    AfterValidator(partial(check_id, field="client_id")),
]
PlanId = Annotated[
    str,
    Path(
        description="Plan id, percent-encoded. A slash can stay unencoded.",
        examples=["free"],
        json_schema_extra=ID_SCHEMA,
    ),
    AfterValidator(partial(check_id, field="plan")),
]


class ResourceQuery(BaseModel):
    """``?resource=``. Unknown parameters are errors: a misspelled name would change all resources."""

    model_config = ConfigDict(extra="forbid")

    resource: (
        Annotated[
            str, AfterValidator(partial(check_id, field="resource")), Field(json_schema_extra=ID_SCHEMA)
        ]
        | None
    ) = Field(None, description="A resource with separate limits and counters.")


Resource = Annotated[ResourceQuery, Query()]


class CheckQuery(ResourceQuery):
    """The parameters of a check besides its client."""

    plan: (
        Annotated[str, AfterValidator(partial(check_id, field="plan")), Field(json_schema_extra=ID_SCHEMA)]
        | None
    ) = Field(None, description="Plan whose limits apply if the client has no limits of its own.")


async def require_utf8(request: Request) -> None:
    """Refuse a URL that is not UTF-8. A dependency of routes with ids in their URL.

    The framework replaces invalid bytes, so different URLs would name the same id.

    Raises:
        InvalidId: The path or the query is not UTF-8.
    """
    require_utf8_in("path", request.scope["raw_path"])
    require_utf8_in("query", request.scope["query_string"])


def require_utf8_in(field: str, raw: bytes) -> None:
    """Refuse *raw*, the path or the query of a URL, if it is not UTF-8.

    Raises:
        InvalidId: Names *field*.
    """
    try:
        unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as exc:
        raise InvalidId(field, "not UTF-8", "percent-encode the UTF-8 of the id") from exc


async def _limiter(request: Request) -> Limiter:
    limiter: Limiter = request.app.state.limiter
    return limiter


LimiterDep = Annotated[Limiter, Depends(_limiter)]


async def _legacy(request: Request) -> bool:
    settings: GatewaySettings = request.app.state.settings
    return settings.legacy_headers


LegacyHeaders = Annotated[bool, Depends(_legacy)]
