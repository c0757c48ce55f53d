from __future__ import annotations

import msgspec
import pytest

from tests.benchmarks.growth import growth_markdown
from tests.benchmarks.readme import PAGE, README, SHORT_ROWS, markers, rewritten, short_table
from tests.benchmarks.samples import Result, Run, Sample
from tests.benchmarks.table import markdown

BEGIN, END = markers("summary")


def run(*keys: str) -> Run:
    sample = Sample(checks=1_000, seconds=1.0, cpu_s={"worker": 0.002}, rss_mb={})
    results = [Result(key=key, stage="", what=f"the way {key}", callers=1, samples=[sample]) for key in keys]
    return Run(facts={"cpu": "two cores"}, rounds=1, seconds=1, results=results, skipped=[], disk_bytes={})


def test_rewritten_replaces_only_the_text_between_the_markers() -> None:
    text = f"# Stoplog\n\n{BEGIN}\n\nold\n\n{END}\n\nMIT\n"
    assert rewritten(text, "summary", "| new |") == f"# Stoplog\n\n{BEGIN}\n\n| new |\n\n{END}\n\nMIT\n"
    assert rewritten(rewritten(text, "summary", "a"), "summary", "b") == rewritten(text, "summary", "b")


@pytest.mark.parametrize("text", ["no markers", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN} {END}"])
def test_rewritten_without_one_pair_of_markers_raises(text: str) -> None:
    with pytest.raises(ValueError, match="the text needs"):
        rewritten(text, "summary", "table")


def test_page_gets_all_rows_and_the_growth_of_costs() -> None:
    measured = run("sdk-1", "published-32")
    page = "\n".join("\n".join(markers(part)) for part in ("rows", "growth"))
    page = rewritten(rewritten(page, "rows", markdown(measured)), "growth", growth_markdown(measured))
    for part in ("cpu: two cores", "| the way published-32 |", "| SDK | 2 |  |  |  |"):
        assert part in page


def test_short_table_has_at_most_seven_rows_and_no_targets() -> None:
    assert len(SHORT_ROWS) <= 7
    text = short_table(run(*SHORT_ROWS, "sdk-1"))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(SHORT_ROWS)
    assert rows[2] == "| **Stoplog**, HTTP, Zipf(1.0), leases on | 1 | 1,000 |  |  | 2 |"
    assert "MISSED" not in text
    assert "two cores" in text


def test_short_table_omits_cases_that_were_not_measured() -> None:
    assert "throttlecrab" not in short_table(run("http-128"))


def test_short_table_explains_the_terms_that_it_contains() -> None:
    both, one = short_table(run(*SHORT_ROWS)), short_table(run("http-128"))
    for term in ("*Uniform*:", "*Leases off*:"):
        assert term in " ".join(both.split())
        assert term in " ".join(one.split())
    assert "*Zipf(1.0)*:" in both
    assert "Zipf" not in one
    assert all(len(line) <= 100 for line in both.splitlines() if not line.startswith("|"))


def test_readme_shows_the_run_that_is_kept_beside_the_docs() -> None:
    kept = msgspec.json.decode((PAGE.with_name("benchmark.json")).read_bytes(), type=Run)
    readme = README.read_text()
    assert rewritten(readme, "summary", short_table(kept)) == readme


@pytest.mark.parametrize("part", ["rows", "growth"])
def test_page_has_its_markers(part: str) -> None:
    assert "new" in rewritten(PAGE.read_text(), part, "new")
