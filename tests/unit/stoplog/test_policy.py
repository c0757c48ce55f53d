from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplog.errors import InvalidCost, InvalidId, InvalidInput, InvalidLimit
from stoplog.policy import (
    IN_FLIGHT_MS,
    MAX_COST,
    MAX_IN_FLIGHT,
    MAX_LIMIT,
    MAX_LIMITS,
    MAX_WINDOW_MS,
    MIN_WINDOW_MS,
    REFUNDABLE,
    UNLIMITED,
    Limit,
    Policy,
    check_cost,
    check_id,
    check_policy,
    parse_limit,
    parse_policy,
    usable_id,
)

limits = st.builds(
    Limit,
    st.integers(0, MAX_LIMIT),
    st.integers(MIN_WINDOW_MS, MAX_WINDOW_MS)
    | st.builds(
        lambda count, unit: min(count * unit, MAX_WINDOW_MS),
        st.integers(1, 60),
        st.sampled_from((1_000, 60_000, 3_600_000, 86_400_000)),
    ),
)
in_flight = st.builds(Limit, st.integers(0, MAX_IN_FLIGHT), st.just(IN_FLIGHT_MS))
policies = (
    st.lists(limits | in_flight | st.just(REFUNDABLE), max_size=MAX_LIMITS, unique_by=lambda it: it.window_ms)
    .map(lambda found: Policy(tuple(sorted(found, key=lambda limit: -limit.window_ms))))
    .filter(lambda policy: bool(policy.windows) or not policy.refundable)
)


@given(limits | in_flight | st.just(REFUNDABLE))
def test_parse_limit_of_a_written_limit_returns_it(limit: Limit) -> None:
    assert parse_limit(str(limit)) == limit


@given(policies, st.randoms(use_true_random=False))
def test_parse_policy_of_a_written_policy_in_any_order_returns_it(policy: Policy, random: Any) -> None:
    spec = policy.spec()
    if isinstance(spec, list):
        random.shuffle(spec)
    assert parse_policy(spec) == policy
    assert check_policy(policy) == policy


@given(policies)
def test_policy_is_its_windows_its_limit_on_requests_in_flight_and_its_mark(policy: Policy) -> None:
    last = () if policy.in_flight is None else (Limit(policy.in_flight, IN_FLIGHT_MS),)
    mark = (REFUNDABLE,) if policy.refundable else ()
    assert policy.windows + last + mark == policy.limits
    assert all(limit.window_ms >= MIN_WINDOW_MS for limit in policy.windows)
    assert policy.unlimited == (not policy.windows and policy.in_flight is None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1001 in flight", "1001 in flight is out of bounds"),
        ("-1 in flight", "-1 in flight is out of bounds"),
        ("1.5 in flight", "'1.5 in flight' is not a limit"),
        ("10 inflight", "'10 inflight' is not a limit"),
    ],
)
def test_parse_limit_in_flight_that_is_invalid_states_the_problem(text: str, problem: str) -> None:
    with pytest.raises(InvalidLimit) as caught:
        parse_limit(text)
    assert caught.value.problem == problem
    assert "in flight" in caught.value.remedy


def test_parse_policy_with_two_limits_in_flight_is_refused() -> None:
    with pytest.raises(InvalidLimit, match="10 in flight and 5 in flight both limit open reservations"):
        parse_policy(["10 in flight", "5/minute", "5 in flight"])


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("refundable", "without a limit that has a window"),
        (["10 in flight", "refundable"], "without a limit that has a window"),
        (["refundable", "5/minute", "refundable"], "occurs twice"),
    ],
)
def test_parse_policy_with_a_misplaced_refundable_is_refused(value: Any, problem: str) -> None:
    with pytest.raises(InvalidLimit, match=f'"refundable" {problem}'):
        parse_policy(value)


@given(policies)
def test_parse_policy_of_the_long_form_returns_the_same(policy: Policy) -> None:
    whole = Policy(tuple(limit for limit in policy.windows if limit.window_ms % 1_000 == 0))
    long = [{"max": limit.max, "window_seconds": limit.window_ms // 1_000} for limit in whole.limits]
    assert parse_policy(long or "unlimited") == whole


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("100/minute", Limit(100, 60_000)),
        ("40/2s", Limit(40, 2_000)),
        ("5/10m", Limit(5, 600_000)),
        ("1000/1h", Limit(1_000, 3_600_000)),
        ("1/day", Limit(1, 86_400_000)),
        ("1/31d", Limit(1, MAX_WINDOW_MS)),
        ("0/minute", Limit(0, 60_000)),
        (" 7 / 3 Hours ", Limit(7, 10_800_000)),
        ("5/1500ms", Limit(5, 1_500)),
        (f"{2**53}/s", Limit(2**53, 1_000)),
    ],
)
def test_parse_limit_accepts_every_documented_form(text: str, limit: Limit) -> None:
    assert parse_limit(text) == limit
    assert parse_policy(text).limits == (limit,)
    assert parse_policy([text]).limits == (limit,)


def test_parse_policy_of_unlimited_counts_nothing() -> None:
    assert parse_policy("unlimited") == UNLIMITED
    assert UNLIMITED.unlimited
    assert UNLIMITED.spec() == "unlimited"
    assert not parse_policy("0/s").unlimited


BAD_LIMITS: list[tuple[Any, str, str]] = [
    ("", "limits", "not a limit"),
    ("lots", "limits", "not a limit"),
    ("100", "limits", "not a limit"),
    ("100/fortnight", "limits", "not a limit"),
    ("/minute", "limits", "not a limit"),
    ("100/minute/s", "limits", "not a limit"),
    ("1e3/minute", "limits", "not a limit"),
    ("9" * 5_000 + "/minute", "limits", "not a limit"),
    ("1/" + "9" * 5_000 + "s", "limits", "not a limit"),
    ("٣/minute\0", "limits", "not a limit"),
    ("٣٣/minute", "limits", "not a limit"),
    ("1/٣s", "limits", "not a limit"),
    ("1.5/minute", "limits", "fraction"),
    ("1/0.5s", "limits", "fraction"),
    ("-1/minute", "limits", "negative"),
    (f"{2**53 + 1}/minute", "limits", "over 2^53"),
    ("1/0s", "limits", "window of 0 ms"),
    ("1/-1s", "limits", "window of -1000 ms"),
    ("1/999ms", "limits", "window of 999 ms"),
    ("1/32d", "limits", "window of"),
    ("1/99999999999999999999d", "limits", "window of"),
    (None, "limits", "not a limit"),
    (7, "limits", "not a limit"),
    (True, "limits", "not a limit"),
    ({}, "limits.max", "missing"),
    ([], "limits", "empty list"),
    ([[]], "limits[0]", "not a limit"),
    (["1/s", None], "limits[1]", "not a limit"),
    (["1/s", "unlimited"], "limits[1]", "among limits"),
    (["1/s", "2/1s"], "limits", "share a window"),
    ([f"1/{n}s" for n in range(1, 10)], "limits", "9 limits"),
    ([{"max": 1}], "limits[0].window_seconds", "missing"),
    ([{"max": 1, "window_seconds": 1, "burst": 2}], "limits[0].burst", "unknown field"),
    ([{"max": 1, "window_seconds": 1, 5: 2}], "limits[0].5", "unknown field"),
    ([{"max": 1.0, "window_seconds": 1}], "limits[0].max", "not a whole number"),
    ([{"max": True, "window_seconds": 1}], "limits[0].max", "not a whole number"),
    ([{"max": "1", "window_seconds": 1}], "limits[0].max", "not a whole number"),
    ([{"max": 10**5_000, "window_seconds": 1}], "limits[0].max", "out of bounds"),
    ([{"max": 1, "window_seconds": -(10**5_000)}], "limits[0].window_seconds", "out of bounds"),
    ([{"max": -1, "window_seconds": 1}], "limits[0]", "negative"),
    ([{"max": 1, "window_seconds": 0}], "limits[0]", "window of 0 ms"),
    ([{"max": 1, "window_seconds": 31 * 86_400 + 1}], "limits[0]", "window of"),
]


@pytest.mark.parametrize(("value", "field", "problem"), BAD_LIMITS, ids=range(len(BAD_LIMITS)))
def test_invalid_limit_names_its_field_and_a_remedy(value: Any, field: str, problem: str) -> None:
    with pytest.raises(InvalidLimit) as caught:
        parse_policy(value)
    assert caught.value.field == field
    assert problem in caught.value.problem
    assert caught.value.remedy
    assert len(str(caught.value)) < 300


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("max"), inner),
        max_leaves=6,
    )
)
def test_parse_policy_of_any_value_returns_a_policy_or_raises_invalid_limit(value: Any) -> None:
    with suppress(InvalidLimit):
        assert check_policy(parse_policy(value))


@pytest.mark.parametrize(
    "policy",
    [
        Policy((Limit(1, 1_000), Limit(1, 2_000))),
        Policy((Limit(1, 1_000), Limit(1, 1_000))),
        Policy((Limit(1, 1),)),
        Policy((Limit(1_001, 0),)),
        Policy((Limit(1, 0), Limit(1, 1_000))),
        Policy((Limit(-1, 1_000),)),
        Policy((Limit(1, 2**64 - 1),)),
        Policy(tuple(Limit(1, n * 1_000) for n in range(9, 0, -1))),
    ],
)
def test_check_policy_of_an_invalid_policy_raises_invalid_limit(policy: Policy) -> None:
    with pytest.raises(InvalidLimit, match=r"^policy"):
        check_policy(policy)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=64))
def test_check_id_accepts_any_script(value: str) -> None:
    assert check_id(value, "client_id") == value


@pytest.mark.parametrize(
    "value", ["a", "x" * 256, "é" * 128, "\U0001f600" * 64, "key one", "a:b/c|d", "日本"]
)
def test_check_id_of_a_valid_id_returns_it(value: str) -> None:
    assert check_id(value, "client_id") == value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "empty"),
        ("x" * 257, "longer than 256 bytes"),
        ("é" * 129, "longer than 256 bytes"),
        ("\U0001f600" * 65, "longer than 256 bytes"),
        *((f"a{control}", "control character") for control in "\0\n\x1f\x7f\x85\u2028\u2029\ud800\udfff"),
    ],
)
def test_check_id_of_an_invalid_id_names_its_field(value: str, problem: str) -> None:
    with pytest.raises(InvalidId, match=problem) as caught:
        check_id(value, "plan")
    assert caught.value.field == "plan"
    assert caught.value.remedy


@given(st.text(st.characters(), max_size=300))
def test_usable_id_of_any_text_is_valid(value: str) -> None:
    assert check_id(usable_id(value), "client_id") == usable_id(value)


def test_usable_id_keeps_valid_ids_and_digests_invalid_ones() -> None:
    assert usable_id("x" * 256) == "x" * 256
    assert len({usable_id(text) for text in ("", "x" * 257, "x" * 258, "\n", "\ud800", "\ud801")}) == 6


@pytest.mark.parametrize("value", [0, 1, MAX_COST])
def test_check_cost_of_a_valid_cost_returns_it(value: int) -> None:
    assert check_cost(value) == value


@pytest.mark.parametrize("value", [-1, MAX_COST + 1, 10**400, 1.0, True, "1", None])
def test_check_cost_of_an_invalid_cost_names_its_field(value: Any) -> None:
    with pytest.raises(InvalidCost, match=r"^cost: ") as caught:
        check_cost(value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "wrong", [lambda: parse_policy("x", "default_limits"), lambda: parse_limit("x", "default_limits")]
)
def test_errors_name_the_field_that_the_caller_gave(wrong: Callable[[], object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        wrong()
    assert caught.value.field == "default_limits"
