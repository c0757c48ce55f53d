"""The fenced code blocks of the documentation, and the tags that exempt some of them from being run.

A comment on the line before a block tags it: ``<!-- needs: docker -->``. Blocks that are not tagged are run
by tests/e2e/documented/; the files and options that tagged blocks name are checked by
tests/unit/test_docs.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.broker import CHECKOUT

PAGES: Final = (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))
"""The pages for users, whose commands are run."""

COMMANDS: Final = frozenset({"sh", "console", "python"})
"""Languages of blocks that a reader would run. All others are data or drawings."""

_FENCE: Final = re.compile(
    r"^(?:<!-- needs: (?P<tag>[a-z]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """One fenced block of a page; *tag* is empty if the block has none."""

    page: str
    line: int
    language: str
    tag: str
    text: str

    @property
    def id(self) -> str:
        """Return the name of this block for a test: page and line."""
        return f"{self.page}:{self.line}"

    def lines(self) -> list[str]:
        """Return the commands of a shell block, one item a command; continued lines are joined."""
        joined = self.text.replace("\\\n", " ")
        return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def blocks(page: Path) -> list[Block]:
    """Return all fenced blocks of *page*, in order."""
    text = page.read_text()
    name = page.relative_to(CHECKOUT).as_posix() if page.is_relative_to(CHECKOUT) else page.name
    return [
        Block(
            name,
            text.count("\n", 0, match.start()) + 1,
            match["language"],
            match["tag"] or "",
            match["text"],
        )
        for match in _FENCE.finditer(text)
    ]


def all_blocks() -> list[Block]:
    """Return the blocks of all pages for users."""
    return [block for page in PAGES for block in blocks(page)]
