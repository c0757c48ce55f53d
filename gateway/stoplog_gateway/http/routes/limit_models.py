"""Stored limits as JSON, and what the routes of clients, plans and the default do alike."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from starlette.responses import Response

from stoplog.client.limiter import Limiter
from stoplog.policy import MAX_LIMIT, MAX_LIMITS, MAX_WINDOW_MS, Policy, parse_policy
from stoplog.wire.limit_updates import UpdateKey
from stoplog_gateway.http.params import ResourceQuery
from stoplog_gateway.http.problems import NO_LIMITS, ProblemError
from stoplog_gateway.http.request_body import decode
from stoplog_gateway.http.responses import respond

_ONE: Final = {
    "oneOf": [
        {"type": "string", "examples": ["100/minute", "40/2s", "5/10m", "1000/1h", "1/day", "0/minute"]},
        {
            "type": "object",
            "properties": {
                "max": {"type": "integer", "minimum": 0, "maximum": MAX_LIMIT},
                "window_seconds": {"type": "integer", "minimum": 1, "maximum": MAX_WINDOW_MS // 1000},
            },
            "required": ["max", "window_seconds"],
            "additionalProperties": False,
        },
    ]
}
_LIMITS: Final = {"oneOf": [*_ONE["oneOf"], {"type": "array", "items": _ONE, "maxItems": MAX_LIMITS}]}


class LimitsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits that must all pass: one, a list, or `"unlimited"`. `"0/minute"` blocks."""

    limits: Annotated[Any, msgspec.Meta(extra_json_schema=_LIMITS)]


class StoredLimits(msgspec.Struct, frozen=True):
    """What is stored under one name; `id` is null for the default, `resource` where it holds for none."""

    kind: Literal["client", "plan", "default"]
    id: str | None
    resource: str | None
    limits: list[str] | Literal["unlimited"] | None


class ChangedLimits(StoredLimits, frozen=True):
    """A change: `limits` is null after a deletion.

    `applied`: the next check sees it. Otherwise it is stored and will be applied, but nobody confirmed
    that in time, and `policy_version` is null.
    """

    applied: bool
    policy_version: int | None


class ListedLimits(StoredLimits, frozen=True):
    """One entry of a page; `limits` is null where they were deleted since an earlier page showed them."""

    policy_version: int


class Page(msgspec.Struct, frozen=True):
    """Some of the stored limits; `next` is the `after` of the page that follows, null at the end."""

    items: list[ListedLimits]
    next: str | None


MODELS: Final = (LimitsRequest, StoredLimits, ChangedLimits, Page)

_request: Final = msgspec.json.Decoder(LimitsRequest)


def key_of(kind: str, id_: str, query: ResourceQuery) -> UpdateKey:
    """The key that a route and its query name; *id_* is empty for the default."""
    return UpdateKey(kind, id_, query.resource or "")


async def put(limiter: Limiter, key: UpdateKey, body: bytes) -> Response:
    """Store what *body* says: 200 when it is applied, 202 when nobody confirmed that in time."""
    return await _change(limiter, key, parse_policy(decode(_request, body).limits))


async def delete(limiter: Limiter, key: UpdateKey) -> Response:
    """Delete what is stored, if anything is; answers as :func:`put`."""
    return await _change(limiter, key, None)


async def get(limiter: Limiter, key: UpdateKey) -> Response:
    """What is stored under exactly this key.

    Raises:
        ProblemError: 404, nothing is.
    """
    policy = await limiter.get_limits(key)
    if policy is None:
        what = f"{key.kind} {key.id}".strip() + (f" for resource {key.resource}" if key.resource else "")
        field = "client_id" if key.kind == "client" else key.kind
        raise ProblemError(NO_LIMITS, f"{what} has no limits of its own", field, "set some with PUT")
    return respond(StoredLimits(**_stored(key, policy)))


async def page(limiter: Limiter, after: str | None, limit: int, kind: str | None) -> Response:
    """A page of what is stored."""
    found = await limiter.list_limits(after, limit, kind)
    items = [
        ListedLimits(**_stored(item.key, item.policy), policy_version=item.version) for item in found.items
    ]
    return respond(Page(items, found.next))


async def _change(limiter: Limiter, key: UpdateKey, policy: Policy | None) -> Response:
    done = await limiter.set_limits(key, policy)
    version = done.version if done.applied else None
    changed = ChangedLimits(**_stored(key, policy), applied=done.applied, policy_version=version)
    return respond(changed, 200 if done.applied else 202)


def _stored(key: UpdateKey, policy: Policy | None) -> dict[str, Any]:
    limits = None if policy is None else policy.spec()
    return {"kind": key.kind, "id": key.id or None, "resource": key.resource or None, "limits": limits}
