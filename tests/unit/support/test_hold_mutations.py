"""The list of mutations fits the code and the tests. ``make mutations`` applies all, this only some."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hold_mutations import HOLD_SET, HOLDS, MUTATIONS, ROOT, Mutation, copy_of_sources, survives

SOME = MUTATIONS[::12]


@pytest.fixture(scope="module")
def copy() -> Iterator[Path]:
    with copy_of_sources() as folder:
        yield folder


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.rule)
def test_mutation_replaces_one_place_and_names_a_test_that_exists(mutation: Mutation) -> None:
    assert (ROOT / mutation.path).read_text().count(mutation.old) == 1
    path, test = mutation.test.split("::")
    name, _, scope = test.partition("[")
    source = (ROOT / path).read_text()
    assert f"def {name}(" in source
    assert not scope or f'"{scope[:-1]}": Scope(' in source


def test_no_two_mutations_have_the_same_rule() -> None:
    assert len({mutation.rule for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", SOME, ids=lambda mutation: mutation.rule)
def test_mutation_is_found(mutation: Mutation, copy: Path) -> None:
    source = (copy / mutation.path).read_text()
    assert not survives(mutation, copy)
    assert (copy / mutation.path).read_text() == source, "the next mutation needs the original"


def test_change_without_effect_survives(copy: Path) -> None:
    test = "tests/unit/stoplog_worker/algorithm/test_holds.py::test_denied_check_gets_no_lease"
    assert "1 passed" in survives(Mutation("none", HOLDS, "units + 0", "units", test), copy)


def test_mutation_that_does_not_run_survives(copy: Path) -> None:
    """A test that fails without an assertion has found nothing: the code does not even work."""
    broken = Mutation(
        "none", HOLD_SET, "from bisect import bisect_left, insort\n", "import nothing\n", "ends"
    )
    assert "No module named 'nothing'" in survives(broken, copy)
