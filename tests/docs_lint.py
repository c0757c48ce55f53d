"""``python -m tests.docs_lint [file ...]``: check the prose of the Markdown pages.

Without files, it checks README.md, DESIGN.md, CONTRIBUTING.md, CHANGELOG.md and docs/**. It finds:

- lines over 100 columns outside tables and code blocks;
- sentences that start with "Who" or "What is", and headings that start with "Who" or "What";
  questions are exempt;
- words that the glossary replaces, and British spelling;
- links to files or headings that are not there.

Text in code spans and code blocks is not checked for words. A page that has to name the words, such as the
glossary itself, encloses them in ``<!-- docs-lint: off -->`` and ``<!-- docs-lint: on -->``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote

CHECKOUT: Final = Path(__file__).resolve().parents[1]

MAX_COLUMNS: Final = 100

_OPENINGS: Final = re.compile(r"(?:Who|Whoever|What is|What was)\b")

_HEADING: Final = re.compile(r"#+\s+(Who|Whoever|What)\b.*[^?]$")

_WORDS: Final = {
    r"(?:let|lets|letting) (?:\w+ ){0,3}through": "fail open",
    r"outbox(?:es)?": "producer",
    r"beats?": "heartbeat",
    r"(?:what|it) is no id": "invalid id",
    r"whoever": "a noun: API caller, client, operator",
    r"is gone on with": "continues",
    r"(?:is|are|was|were) told": "gets, receives",
    r"mend(?:s|ed|ing)?": "fix, repair",
    r"behaviours?": "behavior",
    r"cancelled": "canceled",
    r"colours?": "color",
    r"\w*(?:recogn|organ|serial|initial|summar|optim)is(?:e|es|ed|ing|able)": "the spelling with z",
}
"""Words that the glossary replaces, as patterns of whole words, and the words to use."""

_LINK: Final = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE: Final = re.compile(r"`[^`]*`")


class Finding(NamedTuple):
    """One fault; *line* counts from 1."""

    file: Path
    line: int
    what: str

    def __str__(self) -> str:
        """Return it as a compiler would print it."""
        file = self.file.relative_to(CHECKOUT) if self.file.is_relative_to(CHECKOUT) else self.file
        return f"{file}:{self.line}: {self.what}"


class _Line(NamedTuple):
    number: int
    text: str


def pages() -> list[Path]:
    """Return the pages that are checked by default."""
    root = [CHECKOUT / f"{name}.md" for name in ("README", "DESIGN", "CONTRIBUTING", "CHANGELOG")]
    return [page for page in (*root, *sorted((CHECKOUT / "docs").rglob("*.md"))) if page.exists()]


def lint(page: Path) -> list[Finding]:
    """Return all faults of *page*, in order."""
    prose = list(_outside_code(page.read_text().splitlines()))
    worded = list(_outside_exemptions(prose))
    found = [
        *_long_lines(page, prose),
        *_headings(page, worded),
        *_openings(page, worded),
        *_words(page, worded),
        *_links(page, prose),
    ]
    return sorted(found, key=lambda finding: finding.line)


def _outside_code(lines: Sequence[str]) -> Iterator[_Line]:
    fenced = False
    for number, text in enumerate(lines, 1):
        if text.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield _Line(number, text)


def _outside_exemptions(lines: Sequence[_Line]) -> Iterator[_Line]:
    exempt = False
    for line in lines:
        if line.text.startswith("<!-- docs-lint:"):
            exempt = "off" in line.text
        elif not exempt:
            yield line


def _is_table(text: str) -> bool:
    return text.lstrip().startswith("|")


def _long_lines(page: Path, lines: Sequence[_Line]) -> Iterator[Finding]:
    for line in lines:
        if len(line.text) > MAX_COLUMNS and not _is_table(line.text) and " " in line.text.strip():
            yield Finding(page, line.number, f"{len(line.text)} columns; at most {MAX_COLUMNS}")


def _openings(page: Path, lines: Sequence[_Line]) -> Iterator[Finding]:
    for number, sentence in _sentences(lines):
        if (match := _OPENINGS.match(sentence)) and not sentence.rstrip('"*_)').endswith("?"):
            yield Finding(page, number, f'a sentence starts with "{match[0]}": {sentence[:50]}')


def _headings(page: Path, lines: Sequence[_Line]) -> Iterator[Finding]:
    for line in lines:
        if match := _HEADING.match(line.text):
            yield Finding(page, line.number, f'a heading starts with "{match[1]}": use a noun')


def _sentences(lines: Sequence[_Line]) -> Iterator[tuple[int, str]]:
    """Yield each sentence with the line on which it starts; headings are left out."""
    paragraph: list[_Line] = []
    for line in (*lines, _Line(0, "")):
        text = line.text.strip()
        starts_item = re.match(r"[-*>]\s|\d+\.\s", text) is not None
        if not text or starts_item or text.startswith(("#", "<!--")) or _is_table(text):
            yield from _split(paragraph)
            paragraph = []
        if _is_table(text):
            for cell in text.strip("| ").split("|"):
                yield from _split([_Line(line.number, cell.strip())])
        elif text and not text.startswith(("#", "<!--")):
            paragraph.append(_Line(line.number, re.sub(r"^(?:[-*>]|\d+\.)\s+", "", text)))


def _split(paragraph: Sequence[_Line]) -> Iterator[tuple[int, str]]:
    text, starts = "", []
    for line in paragraph:
        starts.append((len(text), line.number))
        text += _CODE.sub("code", line.text) + " "
    for match in re.finditer(
        r"(?:^|(?<=[.!?:;]\s)|(?<=[.!?]\*\*\s))[*_(\"]*(\S.*?(?:[.!?]+(?=[\s*\")])|$))", text
    ):
        yield max(number for start, number in starts if start <= match.start(1)), match[1].strip()


def _words(page: Path, lines: Sequence[_Line]) -> Iterator[Finding]:
    texts = [_LINK.sub(lambda match: match[0].split("](")[0], _CODE.sub("", line.text)) for line in lines]
    for line, text, following in zip(lines, texts, [*texts[1:], ""], strict=True):
        both = f"{text} {following.lstrip()}"  # a phrase may be wrapped
        for pattern, instead in _WORDS.items():
            for match in re.finditer(rf"\b(?:{pattern})\b", both, re.IGNORECASE):
                if match.start() < len(text):
                    yield Finding(page, line.number, f'"{match[0]}": the glossary has "{instead}"')


def _links(page: Path, lines: Sequence[_Line]) -> Iterator[Finding]:
    for line in lines:
        for target in _LINK.findall(_CODE.sub(lambda match: "x" * len(match[0]), line.text)):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / unquote(path)).resolve() if path else page
            if not file.exists():
                yield Finding(page, line.number, f"{target}: there is no such file")
            elif anchor and file.suffix == ".md" and anchor not in _anchors(file):
                yield Finding(page, line.number, f"{target}: there is no such heading")


@cache
def _anchors(file: Path) -> frozenset[str]:
    """Return the anchors of the headings of *file*, as GitHub makes them."""
    found: dict[str, int] = {}
    anchors = set()
    for line in _outside_code(file.read_text().splitlines()):
        if match := re.match(r"#+\s+(.*?)\s*#*$", line.text):
            plain = _LINK.sub(lambda link: link[0].split("](")[0].lstrip("!["), match[1])
            slug = re.sub(r"[^\w\- ]", "", plain.replace("`", "").lower()).replace(" ", "-")
            seen = found.get(slug, 0)
            found[slug] = seen + 1
            anchors.add(f"{slug}-{seen}" if seen else slug)
    return frozenset(anchors)


def main(arguments: Sequence[str]) -> int:
    """Print all faults; return 1 if there is any."""
    files = [Path(it).resolve() for it in arguments] or pages()
    found = [finding for page in files for finding in lint(page)]
    for finding in found:
        print(finding)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
