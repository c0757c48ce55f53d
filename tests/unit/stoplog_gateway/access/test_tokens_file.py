from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.access.tokens import Tokens, new_token
from stoplog_gateway.access.tokens_file import (
    TokenNameError,
    TokensFileError,
    add_token,
    parse_tokens,
    read_tokens,
    revoke_token,
)

DIGEST = "sha256:" + "0f" * 32
CHECK = frozenset({Scope.CHECK})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def test_new_token_has_256_random_bits_and_a_prefix_for_scanners() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(re.fullmatch(r"stoplog_[A-Za-z0-9_-]{43}", token) for token in tokens)


def test_add_token_creates_a_file_that_only_its_owner_can_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tokens"
    text = add_token(path, "shop", frozenset({Scope.READ, Scope.CHECK}))
    assert path.stat().st_mode & 0o777 == 0o600
    [token] = read_tokens(path)
    assert token.name == "shop"
    assert token.scopes == {Scope.CHECK, Scope.READ}
    assert token.digest == sha256(text.encode()).digest()
    assert text not in path.read_text()
    assert re.search(r"^shop check,read sha256:[0-9a-f]{64} \d{4}-\d\d-\d\d$", path.read_text(), re.MULTILINE)


def test_add_token_keeps_comments_mode_and_a_link_to_the_file(path: Path, tmp_path: Path) -> None:
    path.write_text(f"# ours\n\nops admin {DIGEST}")
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    add_token(link, "shop", CHECK)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.read_text().startswith(f"# ours\n\nops admin {DIGEST}\nshop check sha256:")
    assert [token.name for token in read_tokens(path)] == ["ops", "shop"]
    assert sorted(os.listdir(tmp_path)) == ["link", "tokens"]


def test_revoke_token_removes_its_line_only(path: Path) -> None:
    for name in ("a", "b", "c"):
        add_token(path, name, CHECK)
    revoke_token(path, "b")
    assert [token.name for token in read_tokens(path)] == ["a", "c"]
    with pytest.raises(TokenNameError, match="no token named b"):
        revoke_token(path, "b")


def test_add_token_under_a_taken_or_invalid_name_changes_nothing(path: Path) -> None:
    add_token(path, "shop", CHECK)
    before = path.read_bytes()
    for name in ("shop", "", "-x", "a b", "a\nb", "#a", "x" * 65, "ä", "kafka", "local", "sdk"):
        with pytest.raises(TokenNameError):
            add_token(path, name, CHECK)
    assert path.read_bytes() == before


def test_tokens_added_at_the_same_time_are_all_kept(path: Path) -> None:
    names = [f"n{i}" for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add_token(path, name, CHECK), names))
    assert sorted(token.name for token in read_tokens(path)) == sorted(names)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("shop", "not `name scopes sha256:digest"),
        (f"shop check {DIGEST} 2026-11-30 more", "not `name scopes sha256:digest"),
        (f"shop write {DIGEST}", "unknown scope: use check, read, admin"),
        (f"shop check, {DIGEST}", "unknown scope"),
        (f"-x check {DIGEST}", "is no name"),
        ("shop check stoplog_secret", "the third word is no sha256"),
        (f"shop check {DIGEST[:-1]}", "the third word is no sha256"),
        (f"shop check {DIGEST} today", "the fourth word is no date"),
        (f"ops check {DIGEST.replace('0f', '0e')}", "the name ops occurs twice"),
        (f"shop check {DIGEST.replace('0f', 'aa')}", "the same digest occurs twice"),
        ("\xff check x", "can't decode"),
    ],
)
def test_invalid_line_is_named_with_file_and_number_and_never_with_a_secret(
    path: Path, line: str, problem: str
) -> None:
    content = f"# head\nops admin sha256:{'aa' * 32}\n".encode() + line.encode("latin-1") + b"\n"
    with pytest.raises(TokensFileError, match=problem) as caught:
        parse_tokens(content, path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert "secret" not in str(caught.value)


def test_missing_file_is_named_with_the_remedy(path: Path) -> None:
    with pytest.raises(TokensFileError, match=rf"{path}: cannot be read .*stoplog tokens add"):
        read_tokens(path)
    with pytest.raises(TokensFileError, match="cannot be read"):
        revoke_token(path, "x")
    assert not path.exists()


def test_empty_file_has_no_tokens(path: Path) -> None:
    path.touch()
    assert read_tokens(path) == []


def test_tokens_find_only_the_exact_text(path: Path) -> None:
    text = add_token(path, "shop", CHECK).encode()
    tokens = Tokens(read_tokens(path))
    found = tokens.find(text)
    assert found is not None
    assert found.name == "shop"
    for other in (b"", text[:-1], text + b"\n", text.upper(), found.digest):
        assert tokens.find(other) is None
