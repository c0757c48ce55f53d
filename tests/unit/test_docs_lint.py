"""The lint of the documentation finds each kind of fault, and nothing where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs_lint import lint, main


def found(tmp_path: Path, text: str) -> list[str]:
    page = tmp_path / "page.md"
    page.write_text(text)
    return [f"{finding.line}: {finding.what}" for finding in lint(page)]


def test_lint_of_a_clean_page_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Two words, `code`\n")
    text = (
        "# What is a lane?\n\nWho decides? The worker. See [there](other.md#two-words-code).\n\n"
        "```sh\nlet it through " + "x" * 100 + "\n```\n\n| " + "a table may be wide " * 9 + "|\n\n"
        "[down](#what-is-a-lane), [out](https://example.org/none). `beat` is a field.\n"
    )
    assert found(tmp_path, text) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("word " * 21, "105 columns; at most 100"),
        ("Who cannot have that runs two lanes.", 'a sentence starts with "Who"'),
        ("It is so. What is no JSON is refused.", 'a sentence starts with "What is"'),
        ("## What is protected", 'a heading starts with "What": use a noun'),
        ("- What is missing is added.", 'a sentence starts with "What is"'),
        ("- **A lane.** Whoever asks gets it.", 'a sentence starts with "Whoever"'),
        ("| a | What is missing |", 'a sentence starts with "What is"'),
        ("Checks are let through.", '"let through": the glossary has "fail open"'),
        ("A gateway lets all of them\nthrough.", '"lets all of them through": the glossary has "fail open"'),
        ("Nodes send beats.", '"beats": the glossary has "heartbeat"'),
        ("The outbox is full.", '"outbox": the glossary has "producer"'),
        ("This behaviour is new.", '"behaviour": the glossary has "behavior"'),
        ("It is recognised.", '"recognised": the glossary has'),
        ("See [there](none.md).", "none.md: there is no such file"),
        ("See [here](#none).", "#none: there is no such heading"),
        ("See [here](page.md#none).", "page.md#none: there is no such heading"),
    ],
)
def test_lint_of_a_faulty_line_names_the_fault(tmp_path: Path, line: str, fault: str) -> None:
    assert any(finding.startswith(f"3: {fault}") for finding in found(tmp_path, f"# Title\n\n{line}\n"))


def test_lint_skips_words_that_a_page_exempts(tmp_path: Path) -> None:
    text = "<!-- docs-lint: off -->\n\nlet through\n\n<!-- docs-lint: on -->\n\nlet through\n"
    assert found(tmp_path, text) == ['7: "let through": the glossary has "fail open"']


def test_lint_ends_with_status_1_if_there_is_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("An outbox.\n")
    assert main([str(page)]) == 1
    assert capsys.readouterr().out == f'{page}:1: "outbox": the glossary has "producer"\n'
    page.write_text("A producer.\n")
    assert main([str(page)]) == 0
