"""Arbitrary bytes raise only documented errors, in bounded time and memory, and survive a round trip."""

from __future__ import annotations

import pytest

from tests.support.fuzz.decoders import TARGETS, Target
from tests.support.fuzz.runner import (
    FOUND,
    SEED,
    TEST_INPUTS,
    Violation,
    found_inputs,
    run_decoder,
    run_decoders,
)

NAMES = [target.name for target in TARGETS]


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_examples_are_accepted(target: Target) -> None:
    assert [run_decoder(target, data) for data in target.examples] == [True] * len(target.examples)


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_inputs_that_were_found_violate_nothing(target: Target) -> None:
    for data in found_inputs(target.name):
        outcome = run_decoder(target, data, traced=True)
        assert not isinstance(outcome, Violation), str(outcome)


def test_found_inputs_belong_to_a_target() -> None:
    assert {path.stem for path in FOUND.glob("*.txt")} <= {*NAMES, "http"}


def test_violation_is_reported_with_its_input() -> None:
    def broken(_: bytes) -> bool:
        raise KeyError("not documented")

    assert run_decoder(Target("broken", (b"",), broken), b"x") == Violation(
        "broken", b"x", "KeyError: 'not documented'"
    )

    def greedy(_: bytes) -> bool:
        return bool(bytearray(32 << 20))

    outcome = run_decoder(Target("greedy", (b"",), greedy), b"x", traced=True)
    assert isinstance(outcome, Violation)
    assert outcome.error == "32 MiB of memory"


def test_same_seed_makes_the_same_inputs() -> None:
    runs = []
    for seed in (1, 1, 2):
        seen: list[tuple[str, int, int]] = []
        assert not list(run_decoders(seed, 500, lambda *row, seen=seen: seen.append(row)))
        runs.append(seen)
    assert runs[0] == runs[1] != runs[2]


def test_decoders_hold_their_properties_for_arbitrary_bytes() -> None:
    accepted: dict[str, int] = {}
    inputs: dict[str, int] = {}

    def report(target: str, number: int, kept: int) -> None:
        inputs[target], accepted[target] = number, kept

    print(f"FUZZ_SEED={SEED}")
    violations = list(run_decoders(SEED, TEST_INPUTS, report))
    assert not violations, "\n".join(map(str, [f"FUZZ_SEED={SEED}", *violations[:5]]))
    # Mutations that are always refused, or never, would test nothing.
    refused = {name: inputs[name] - accepted[name] for name in NAMES}
    assert all(accepted.values()), accepted
    assert {name for name, number in refused.items() if not number} <= {"counter-keys", "trace"}
