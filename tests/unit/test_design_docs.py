"""The design documents name files that exist, and show bytes that the code writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from stoplog_worker.algorithm.sliding_window import Window
from stoplog_worker.algorithm.state_codec import State, encode_state

from stoplog.policy import parse_policy
from stoplog.wire.checks import POSITION_BITS, Batch, Check, encode_batch, encode_update
from stoplog.wire.limit_updates import Update
from tests.support.broker import CHECKOUT

PAGES: Final = (
    CHECKOUT / "DESIGN.md",
    CHECKOUT / "CONTRIBUTING.md",
    CHECKOUT / "docs" / "benchmarks.md",
    *sorted((CHECKOUT / "docs" / "design").glob("*.md")),
)

ELSEWHERE: Final = {
    ".venv/kafka.aot",  # made by the tests
    "build/bench/quick.json",  # made by make bench
    "tests/unit/tables/test_recovery.py",  # of faust-streaming
}

_PATH: Final = re.compile(r"[\w.\-*]+(?:/[\w.\-*]+)+/?|[\w\-*]+\.(?:py|lua|md|patch|toml|yaml|yml)")
_FOLDERS: Final = ("stoplog", "gateway", "streams", "tests", "docs", "docker", "examples")


def paths(page: Path) -> set[str]:
    """Return what *page* has in code spans and looks like a path; a command or a URL's path is none."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return {span for span in re.findall(r"`([^`\n]+)`", prose) if _PATH.fullmatch(span)} - ELSEWHERE


def exists(path: str) -> bool:
    """Return whether *path* is that of a file or folder, or the end of one. ``build`` holds what is made."""
    if path.startswith("build/"):
        return True
    if next(CHECKOUT.glob(path), None) is not None:
        return True
    return any(next((CHECKOUT / folder).rglob(path), None) is not None for folder in _FOLDERS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_that_a_page_names_exist(page: Path) -> None:
    assert [path for path in sorted(paths(page)) if not exists(path)] == []


def examples() -> Iterator[bytes]:
    """Yield the bytes of each example in wire-format.md: hex digits before four spaces or a line end."""
    text = (CHECKOUT / "docs" / "design" / "wire-format.md").read_text()
    for block in re.findall(r"^```\n(01 .*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        digits = (re.split(r" {4,}", line.strip())[0] for line in block.splitlines())
        yield bytes.fromhex("".join(digits))


def test_examples_of_the_wire_format_are_what_the_code_writes() -> None:
    checks = [Check("alice"), Check("bob", 5, "gold", "login")]
    window = Window(60_000)
    window.charge(1_700_000_000_000, 1)
    assert list(examples()) == [
        encode_batch(Batch(2, 0x1122334455667788, 7, checks)),
        encode_update(Update(41, "client", "alice", "", parse_policy("100/minute"))),
        encode_state(State(1_234 << POSITION_BITS, {60_000: window})),
    ]
