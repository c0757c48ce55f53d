from __future__ import annotations

import pytest

from tests.benchmarks.readme import BEGIN, END, page, rewritten
from tests.benchmarks.samples import Result, Run, Sample
from tests.support.broker import CHECKOUT


def test_only_what_stands_between_the_markers_changes() -> None:
    text = f"# Stoplog\n\n{BEGIN}\n\nold\n\n{END}\n\nMIT\n"
    assert rewritten(text, "| new |") == f"# Stoplog\n\n{BEGIN}\n\n| new |\n\n{END}\n\nMIT\n"
    assert rewritten(rewritten(text, "a"), "b") == rewritten(text, "b")


@pytest.mark.parametrize("text", ["no markers", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN} {END}"])
def test_a_text_without_one_pair_of_markers_is_not_touched(text: str) -> None:
    with pytest.raises(ValueError, match="the text needs"):
        rewritten(text, "table")


def test_the_page_has_all_rows_and_how_cost_grows() -> None:
    sample = Sample(checks=1_000, seconds=1.0, cpu_s={"worker": 0.002}, rss_mb={})
    results = [
        Result(key=key, stage="", what=f"the way {key}", callers=1, samples=[sample])
        for key in ("sdk-1", "published-32")
    ]
    text = page(
        Run(facts={"cpu": "two cores"}, rounds=1, seconds=1, results=results, skipped=[], disk_bytes={})
    )
    for part in ("cpu: two cores", "| the way published-32 |", "| SDK | 2 |  |  |  |", "make bench-full"):
        assert part in text


def test_the_readme_has_its_markers() -> None:
    text = (CHECKOUT / "README.md").read_text()
    assert "new" in rewritten(text, "new")
