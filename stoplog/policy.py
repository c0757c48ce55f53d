"""Limits and policies, and the rules for ids and costs.

A policy applies to a client, a plan or the default. It is a list of limits, all of which must pass, or
``unlimited``, which counts nothing. The word ``refundable`` in the list permits refunds without a
reservation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import msgspec

from stoplog.errors import InvalidCost, InvalidId, InvalidLimit

MAX_ID_BYTES: Final = 256
"""Bytes of UTF-8 in an id of a client, plan or resource: ids are in the key of every state."""

MAX_COST: Final = 1_000_000
"""Requests that one check may charge: bounds the damage of a mistake."""

MAX_LIMIT: Final = 2**53
"""The largest limit: every JSON reader holds it exactly."""

MIN_WINDOW_MS: Final = 1_000
MAX_WINDOW_MS: Final = 31 * 86_400_000
"""31 days: the changelog must keep counters longer than their window (topics.yaml keeps twice as long)."""

MAX_IN_FLIGHT: Final = 1_000
"""Open reservations of one client and resource: their state must fit into a changelog record."""

IN_FLIGHT_MS: Final = 0
"""In place of a window: the limit bounds the open reservations of the client."""

_REFUNDABLE_MS: Final = -1
"""In place of a window: no limit, but the mark of a refundable policy. It is stored and sent like a limit."""

MAX_LIMITS: Final = 8
"""Limits in one policy: each costs a list of counts per client."""

_UNITS_MS: Final = {
    "s": 1_000, "sec": 1_000, "second": 1_000, "seconds": 1_000,
    "m": 60_000, "min": 60_000, "minute": 60_000, "minutes": 60_000,
    "h": 3_600_000, "hour": 3_600_000, "hours": 3_600_000,
    "d": 86_400_000, "day": 86_400_000, "days": 86_400_000,
}  # fmt: skip
_NAMES: Final = (
    (86_400_000, "day", "d"),
    (3_600_000, "hour", "h"),
    (60_000, "minute", "m"),
    (1_000, "second", "s"),
)

_SPEC: Final = re.compile(
    r"\s*(-?\d{1,20}(?:\.\d{1,20})?)\s*/\s*(-?\d{1,20}(?:\.\d{1,20})?)?\s*([A-Za-z]+)\s*", re.ASCII
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_IN_FLIGHT: Final = re.compile(r"\s*(-?\d{1,20})\s+in\s+flight\s*", re.ASCII)
_FORMS: Final = (
    'write it as "100/minute", "40/2s", "5/10m", "1/day", "10 in flight", "refundable" or "unlimited"'
)


class Limit(msgspec.Struct, frozen=True, array_like=True, order=True):
    """At most ``max`` requests in any ``window_ms`` milliseconds. A ``max`` of 0 blocks the client.

    With a window of :data:`IN_FLIGHT_MS`: at most ``max`` reservations that are open at the same time,
    whatever their cost.
    """

    max: int
    window_ms: int

    def __str__(self) -> str:
        """Return the form that :func:`parse_limit` reads.

        >>> str(Limit(100, 60_000)), str(Limit(40, 2_000)), str(Limit(5, 1_500))
        ('100/minute', '40/2s', '5/1500ms')
        >>> str(Limit(10, IN_FLIGHT_MS)), str(REFUNDABLE)
        ('10 in flight', 'refundable')
        """
        if self.window_ms == _REFUNDABLE_MS:
            return "refundable"
        if self.window_ms == IN_FLIGHT_MS:
            return f"{self.max} in flight"
        for unit_ms, name, letter in _NAMES:
            if self.window_ms == unit_ms:
                return f"{self.max}/{name}"
            if self.window_ms % unit_ms == 0:
                return f"{self.max}/{self.window_ms // unit_ms}{letter}"
        return f"{self.max}/{self.window_ms}ms"


REFUNDABLE: Final = Limit(0, _REFUNDABLE_MS)
"""Marks a policy that permits refunds without a reservation. It is the last of its limits."""


class Policy(msgspec.Struct, frozen=True, array_like=True):
    """Limits that must all pass, the longest window first. An empty policy is unlimited.

    A limit on requests in flight follows those with a window. The mark of a refundable policy is the last.
    """

    limits: tuple[Limit, ...] = ()

    @property
    def unlimited(self) -> bool:
        """Whether the policy counts nothing."""
        return not self.limits

    @property
    def windows(self) -> tuple[Limit, ...]:
        """The limits that have a window."""
        marks = (self.in_flight is not None) + self.refundable
        return self.limits[: len(self.limits) - marks]

    @property
    def refundable(self) -> bool:
        """Whether charges may be returned without a reservation."""
        return self.limits[-1:] == (REFUNDABLE,)

    @property
    def in_flight(self) -> int | None:
        """The reservations that may be open at the same time; ``None`` if that is not limited."""
        last = self.limits[-2 if self.refundable else -1 :][:1]
        return last[0].max if last and last[0].window_ms == IN_FLIGHT_MS else None

    def spec(self) -> list[str] | str:
        """Return the form that :func:`parse_policy` reads."""
        return [str(limit) for limit in self.limits] or "unlimited"


UNLIMITED: Final = Policy()


def parse_limit(text: str, field: str = "limits") -> Limit:
    """Return the limit that *text* describes.

    Args:
        text: ``<max>/<window>``; the window is a unit (``minute``) or a number and a unit (``10m``). Or
            ``<max> in flight``. Or ``refundable``.
        field: Name of the field in errors.

    Raises:
        InvalidLimit: The text has another form, or a number is out of bounds.

    >>> parse_limit("100/minute"), parse_limit("40/2s")
    (Limit(max=100, window_ms=60000), Limit(max=40, window_ms=2000))
    >>> parse_limit("10 in flight").max
    10
    >>> parse_limit("10/0s")
    Traceback (most recent call last):
    stoplog.errors.InvalidLimit: limits: a window of 0 ms; a window is 1 second to 31 days
    """
    if (in_flight := _IN_FLIGHT.fullmatch(text)) is not None:
        count = int(in_flight[1])
        if not 0 <= count <= MAX_IN_FLIGHT:
            raise InvalidLimit(field, f"{count} in flight is out of bounds", "use 0 to 1,000 in flight")
        return Limit(count, IN_FLIGHT_MS)
    if text.strip() == "refundable":
        return REFUNDABLE
    match = _SPEC.fullmatch(text)
    unit_ms = {**_UNITS_MS, "ms": 1}.get(match[3].lower()) if match else None
    if match is None or unit_ms is None:
        raise InvalidLimit(field, f"{text[:40]!r} is not a limit", _FORMS)
    most, number = match[1], match[2] or "1"
    if "." in most or "." in number:
        raise InvalidLimit(field, f"{text!r} has a fraction", "use whole numbers")
    return _bounded(int(most), int(number) * unit_ms, field)


def _bounded(count: int, window_ms: int, field: str) -> Limit:
    if count < 0:
        raise InvalidLimit(field, "a negative limit", "0 blocks; a larger number allows")
    if count > MAX_LIMIT:
        raise InvalidLimit(field, "a limit over 2^53", 'use "unlimited" to count nothing')
    if not MIN_WINDOW_MS <= window_ms <= MAX_WINDOW_MS:
        raise InvalidLimit(field, f"a window of {window_ms} ms", "a window is 1 second to 31 days")
    return Limit(count, window_ms)


def parse_policy(value: Any, field: str = "limits") -> Policy:
    """Return the policy that a JSON value describes.

    Args:
        value: ``"unlimited"``, one limit, or a list of limits. A limit is text (``"100/minute"``) or
            the long form ``{"max": 100, "window_seconds": 60}``.
        field: Name of the field in errors.

    Raises:
        InvalidLimit: The value has another form, over ``MAX_LIMITS`` limits, or two limits of one window.

    >>> parse_policy(["10/second", {"max": 100, "window_seconds": 60}]).spec()
    ['100/minute', '10/second']
    >>> parse_policy("unlimited").unlimited, parse_policy(["refundable", "1/day"]).spec()
    (True, ['1/day', 'refundable'])
    """
    if value == "unlimited":
        return UNLIMITED
    items: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    if not items:
        raise InvalidLimit(field, "an empty list", 'give at least one limit, or "unlimited"')
    if len(items) > MAX_LIMITS:
        raise InvalidLimit(field, f"{len(items)} limits", f"a policy has at most {MAX_LIMITS}")
    is_single = items is not value
    limits = [_limit_of(item, field if is_single else f"{field}[{i}]") for i, item in enumerate(items)]
    limits.sort(key=lambda limit: -limit.window_ms)
    for a, b in pairwise(limits):
        if a.window_ms == b.window_ms:
            if a == REFUNDABLE:
                raise InvalidLimit(field, '"refundable" occurs twice', "give it once")
            problem = "both limit open reservations" if a.window_ms == IN_FLIGHT_MS else "share a window"
            raise InvalidLimit(field, f"{a} and {b} {problem}", "keep the smaller of the two")
    policy = Policy(tuple(limits))
    if policy.refundable and not policy.windows:
        raise InvalidLimit(field, '"refundable" without a limit that has a window', 'add one: "100/minute"')
    return policy


PLAN_MARK: Final = "="
"""First character of a plan that states its limits itself."""


def plan_policy(plan: str) -> Policy | None:
    """Return the policy that the name of a plan states; ``None`` if it states none.

    Such a name is ``=`` and limits with windows, separated by commas. Any program that reads the same name
    finds the same limits, so the plan needs no definition.

    >>> plan_policy("=5/minute").spec(), plan_policy("=100/day,5/m").spec()
    (['5/minute'], ['100/day', '5/minute'])
    >>> plan_policy("gold"), plan_policy("=5"), plan_policy("=2 in flight")
    (None, None, None)
    """
    if not plan.startswith(PLAN_MARK):
        return None
    try:
        policy = parse_policy(plan.removeprefix(PLAN_MARK).split(","))
    except InvalidLimit:
        return None
    return policy if policy.windows == policy.limits else None


def plan_name(policy: Policy) -> str:
    """Return the name of the plan that states *policy*.

    Raises:
        InvalidLimit: A name cannot state it.

    >>> plan_name(parse_policy(["5/minute", "100/1d"]))
    '=100/day,5/minute'
    """
    name = PLAN_MARK + ",".join(map(str, policy.limits))
    if plan_policy(name) != policy:
        raise InvalidLimit("limits", f"{policy.spec()} has no limit with a window", 'use one like "5/minute"')
    return name


def check_policy(policy: Policy, field: str = "policy") -> Policy:
    """Return *policy* if :func:`parse_policy` can return it.

    Raises:
        InvalidLimit: The policy is invalid.
    """
    if policy.limits and parse_policy([str(limit) for limit in policy.limits], field) != policy:
        raise InvalidLimit(field, "limits out of order", "put the longest window first")
    return policy


def _limit_of(item: Any, field: str) -> Limit:
    if isinstance(item, str):
        if item == "unlimited":
            raise InvalidLimit(field, '"unlimited" among limits', 'give "unlimited" alone')
        return parse_limit(item, field)
    if not isinstance(item, dict):
        raise InvalidLimit(field, f"{type(item).__name__} is not a limit", _FORMS)
    unknown = sorted(map(str, item.keys() - {"max", "window_seconds"}))
    if unknown:
        raise InvalidLimit(f"{field}.{unknown[0]}", "unknown field", "use max and window_seconds")
    for name in ("max", "window_seconds"):
        if name not in item:
            raise InvalidLimit(f"{field}.{name}", "missing", "give max and window_seconds")
        if isinstance(item[name], bool) or not isinstance(item[name], int):
            raise InvalidLimit(f"{field}.{name}", "not a whole number", "use a whole number")
        if abs(item[name]) > MAX_LIMIT:  # and may have more digits than Python will print
            raise InvalidLimit(f"{field}.{name}", "out of bounds", "use a smaller number")
    return _bounded(item["max"], item["window_seconds"] * 1_000, field)


def check_id(value: str, field: str) -> str:
    """Return *value* if it is a valid id of a client, plan or resource.

    Raises:
        InvalidId: The id is empty, over 256 bytes of UTF-8, or contains control characters.
    """
    if not value:
        raise InvalidId(field, "empty", "give an id of 1 to 256 bytes")
    if len(value) * 4 > MAX_ID_BYTES and len(value.encode(errors="replace")) > MAX_ID_BYTES:
        raise InvalidId(field, "longer than 256 bytes of UTF-8", "use a shorter id, or a hash of it")
    if not value.isprintable() and _CONTROL.search(value):
        raise InvalidId(field, "contains a control character", "remove it")
    return value


def usable_id(value: str) -> str:
    """Return *value* if it is a valid id, else its digest.

    Use this for ids that a limited caller chooses: refusing an invalid one would exempt it from its limits.

    >>> usable_id("alice"), usable_id("")[:15]
    ('alice', 'sha256:e3b0c442')
    """
    try:
        return check_id(value, "id")
    except InvalidId:
        return digest_id(value.encode(errors="surrogatepass"))


def digest_id(value: bytes) -> str:
    """Return the id that replaces an invalid id: ``sha256:`` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(value).hexdigest()}"


def check_cost(value: int, field: str = "cost") -> int:
    """Return *value* if it is a valid cost.

    Raises:
        InvalidCost: The cost is no whole number from 0 to ``MAX_COST``.
    """
    if type(value) is not int:
        raise InvalidCost(field, "not a whole number", "use a whole number; 0 only looks")
    if not 0 <= value <= MAX_COST:
        raise InvalidCost(field, "out of bounds", "use 0 to 1,000,000; 0 only looks")
    return value
