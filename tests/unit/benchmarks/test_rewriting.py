from __future__ import annotations

import pytest

from tests.benchmarks.readme import BEGIN, END, rewritten
from tests.broker import CHECKOUT


def test_only_what_stands_between_the_markers_changes() -> None:
    text = f"# Sluice\n\n{BEGIN}\n\nold\n\n{END}\n\nMIT\n"
    assert rewritten(text, "| new |") == f"# Sluice\n\n{BEGIN}\n\n| new |\n\n{END}\n\nMIT\n"
    assert rewritten(rewritten(text, "a"), "b") == rewritten(text, "b")


@pytest.mark.parametrize("text", ["no markers", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN} {END}"])
def test_a_text_without_one_pair_of_markers_is_not_touched(text: str) -> None:
    with pytest.raises(ValueError, match="the text needs"):
        rewritten(text, "table")


def test_the_readme_has_its_markers() -> None:
    text = (CHECKOUT / "README.md").read_text()
    assert "new" in rewritten(text, "new")
