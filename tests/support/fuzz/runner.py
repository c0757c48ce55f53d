"""Run inputs through the targets, and keep those that violate a property.

A run is described by a seed and a number of inputs: the same two give the same inputs. Each input may take a
second of the thread's CPU time. One in :data:`_TRACED` is also run with its memory traced.
"""

from __future__ import annotations

import ast
import asyncio
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from tests.support.fuzz import http_front
from tests.support.fuzz.decoders import TARGETS, Target
from tests.support.fuzz.mutations import Mutator

SEED: Final = int(os.environ.get("FUZZ_SEED") or 20_261_130)
"""Seed of `make test`: the same one each time, unless ``FUZZ_SEED`` is set."""

TEST_INPUTS: Final = 50_000
"""Inputs of `make test`."""

FOUND: Final = Path(__file__).with_name("found")
"""One file for each target, with a Python literal a line: inputs that violated a property once."""

HTTP_SHARE: Final = 0.05
"""Share of the inputs that the HTTP front gets: each takes a hundred times as long as one of a decoder."""

MAX_CPU_S: Final = 1.0
"""CPU time of one input. All inputs that were tried need less than a tenth of it."""

MAX_VIOLATIONS: Final = 20
"""Violations after which a run of the HTTP front ends. Each one needs a new application."""

_TRACED: Final = 50
_MAX_MEMORY: Final = 16 << 20
"""Memory that an input of at most 64 KiB may need."""


class Violation(NamedTuple):
    """An input that violates a property."""

    target: str
    data: bytes
    error: str

    def __str__(self) -> str:
        return f"{self.target}: {self.error}\n  {self.data[:2_000]!r}"


def found_inputs(target: str) -> list[bytes]:
    """Return the inputs that were found for *target*."""
    path = FOUND / f"{target}.txt"
    return [ast.literal_eval(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(violation: Violation) -> None:
    """Add the input to those that were found."""
    FOUND.mkdir(exist_ok=True)
    with (FOUND / f"{violation.target}.txt").open("a") as file:
        file.write(f"{violation.data!r}\n")


def _shares(inputs: int) -> Iterator[tuple[Target, int]]:
    whole = sum(target.share for target in TARGETS)
    for target in TARGETS:
        yield target, max(1, round(inputs * (1 - HTTP_SHARE) * target.share / whole))


def run_decoders(seed: int, inputs: int, report: Callable[[str, int, int], None]) -> Iterator[Violation]:
    """Run the decoders' share of *inputs*; yield what is found.

    Args:
        seed: Seed of all choices.
        inputs: Inputs of the whole run, with those of the HTTP front.
        report: Called with each target's name, and how many inputs it had and accepted.
    """
    for target, number in _shares(inputs):
        mutator = Mutator(Random(f"{seed}/{target.name}"), target.examples, target.msgpack_at)
        accepted = 0
        for index in range(number):
            data = mutator.next_input()
            outcome = run_decoder(target, data, traced=index % _TRACED == 0)
            if isinstance(outcome, Violation):
                yield outcome
            elif outcome:
                accepted += 1
                if accepted % 8 == 0:
                    mutator.keep(data)
        report(target.name, number, accepted)


def run_decoder(target: Target, data: bytes, *, traced: bool = False) -> bool | Violation:
    """Return whether *target* accepts *data*, or the violation."""
    began = time.thread_time()
    if traced:
        tracemalloc.start()
    try:
        accepted = target.run(data)
        if traced and (peak := tracemalloc.get_traced_memory()[1]) > _MAX_MEMORY:
            return Violation(target.name, data, f"{peak >> 20} MiB of memory")
    except Exception as exc:  # noqa: BLE001 - any exception is a finding
        return Violation(target.name, data, f"{type(exc).__name__}: {exc}"[:600])
    finally:
        if traced:
            tracemalloc.stop()
    if (took := time.thread_time() - began) > MAX_CPU_S:
        return Violation(target.name, data, f"{took:.1f} s of CPU time")
    return accepted


async def run_http(seed: int, inputs: int, report: Callable[[str, int, int], None]) -> list[Violation]:
    """Run the HTTP front's share of *inputs*; return what is found. See :func:`run_decoders`."""
    front, random = http_front.HttpFront(), Random(f"{seed}/{http_front.NAME}")
    mutator = Mutator(random, http_front.EXAMPLES)
    violations = []
    new = 0
    number = round(inputs * HTTP_SHARE)
    for _ in range(number):
        data = mutator.next_input()
        outcome = await run_http_input(front, data, random)
        if isinstance(outcome, Violation):
            violations.append(outcome)
            if len(violations) == MAX_VIOLATIONS:
                break
            front = http_front.HttpFront()
        elif outcome:
            mutator.keep(data)
            new += 1
    report(http_front.NAME, number, new)
    return violations


async def run_http_input(front: http_front.HttpFront, data: bytes, places: Random) -> bool | Violation:
    """Return whether the responses to *data* are of a new kind, or the violation."""
    began = time.thread_time()
    try:
        is_new = await front.run(data, places)
    except Exception as exc:  # noqa: BLE001 - any exception is a finding
        return Violation(http_front.NAME, data, f"{type(exc).__name__}: {exc}"[:1_000])
    if (took := time.thread_time() - began) > MAX_CPU_S:
        return Violation(http_front.NAME, data, f"{took:.1f} s of CPU time")
    return is_new


def run_all(seed: int, inputs: int, report: Callable[[str, int, int], None]) -> list[Violation]:
    """Run *inputs* inputs; return what is found."""
    return [*run_decoders(seed, inputs, report), *asyncio.run(run_http(seed, inputs, report))]
