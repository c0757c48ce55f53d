"""The JSON models of stored limits."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from stoplog.policy import MAX_LIMIT, MAX_LIMITS, MAX_WINDOW_MS, Policy
from stoplog.wire.limit_updates import UpdateKey

_LIMIT_SCHEMA: Final = {
    "oneOf": [
        {
            "type": "string",
            "pattern": r"^\s*[0-9]{1,20}\s*/\s*[0-9]{0,20}\s*"
            r"([Mm][Ss]|[Ss]([Ee][Cc]([Oo][Nn][Dd][Ss]?)?)?|[Mm]([Ii][Nn]([Uu][Tt][Ee][Ss]?)?)?"
            r"|[Hh]([Oo][Uu][Rr][Ss]?)?|[Dd]([Aa][Yy][Ss]?)?)\s*$",
            "examples": ["100/minute", "40/2s", "5/10m", "1000/1h", "1/day", "0/minute"],
        },
        {
            "type": "string",
            "pattern": r"^\s*0*([0-9]{1,3}|1000)\s+in\s+flight\s*$",
            "examples": ["10 in flight"],
        },
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
_TEXT, _IN_FLIGHT, _OBJECT = _LIMIT_SCHEMA["oneOf"]
_ITEM_SCHEMA: Final = {"oneOf": [_TEXT, _IN_FLIGHT, _OBJECT, {"const": "refundable"}]}
_LIMITS_SCHEMA: Final = {
    "oneOf": [
        {"const": "unlimited"},
        *_LIMIT_SCHEMA["oneOf"],
        {
            "type": "array",
            "items": _ITEM_SCHEMA,
            "minItems": 1,
            "maxItems": MAX_LIMITS,
            "uniqueItems": True,
            # "refundable" needs a limit that has a window.
            "anyOf": [{"items": _LIMIT_SCHEMA}, {"contains": {"oneOf": [_TEXT, _OBJECT]}}],
        },
    ]
}


class LimitsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits that must all allow a check: one limit, a list, or `"unlimited"`. `"0/minute"` blocks.

    `"refundable"` in the list permits refunds without a reservation.
    """

    limits: Annotated[Any, msgspec.Meta(extra_json_schema=_LIMITS_SCHEMA)]


class StoredLimits(msgspec.Struct, frozen=True):
    """The limits stored under one name. `id` is null for the default; `resource` can be null."""

    kind: Literal["client", "plan", "default"]
    id: str | None
    resource: str | None
    limits: list[str] | Literal["unlimited"] | None


class ChangedLimits(StoredLimits, frozen=True):
    """A change of limits. `limits` is null after a deletion.

    If `applied` is true, the next check sees the change. Otherwise the change is stored and will be applied,
    but no worker confirmed it in time, and `policy_version` is null.
    """

    applied: bool
    policy_version: int | None


class DeletedLimits(ChangedLimits, frozen=True):
    """A deletion. `existed` states whether there was anything to delete; null if no worker said so."""

    existed: bool | None


class ListedLimits(StoredLimits, frozen=True):
    """One entry of a page. `limits` is null if they were deleted after an earlier page had shown them."""

    policy_version: int


class Page(msgspec.Struct, frozen=True):
    """A page of stored limits. `next` is the `after` of the next page, and null on the last page."""

    items: list[ListedLimits]
    next: str | None


MODELS: Final = (LimitsRequest, StoredLimits, ChangedLimits, DeletedLimits, Page)


def with_whole_numbers(limits: Any) -> Any:
    """Return *limits* of a request with ``100.0`` as 100: to JSON, both are integers.

    >>> with_whole_numbers([{"max": 100.0, "window_seconds": 1.5}])
    [{'max': 100, 'window_seconds': 1.5}]
    """
    if isinstance(limits, list):
        return [_with_whole_numbers(limit) for limit in limits]
    return _with_whole_numbers(limits)


def _with_whole_numbers(limit: Any) -> Any:
    if not isinstance(limit, dict):
        return limit
    return {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in limit.items()
    }


def stored_fields(key: UpdateKey, policy: Policy | None) -> dict[str, Any]:
    """Return the fields of :class:`StoredLimits` for *policy*, stored under *key*."""
    limits = None if policy is None else policy.spec()
    return {"kind": key.kind, "id": key.id or None, "resource": key.resource or None, "limits": limits}
