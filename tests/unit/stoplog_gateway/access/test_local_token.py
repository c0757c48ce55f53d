from __future__ import annotations

from pathlib import Path

from stoplog_gateway.access.local_token import LOCAL_NAME, ensure_local_token
from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.access.tokens import Tokens
from stoplog_gateway.access.tokens_file import add_token, read_tokens, revoke_token


def found(home: Path) -> str | None:
    """Return the name of the token in the data folder, if the tokens file has it."""
    token = Tokens(read_tokens(home / "tokens")).find((home / "token").read_bytes().strip())
    return token.name if token is not None else None


def test_first_start_makes_a_private_token_that_may_do_everything(tmp_path: Path) -> None:
    assert ensure_local_token(tmp_path) == tmp_path / "tokens"
    assert found(tmp_path) == LOCAL_NAME
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    [token] = read_tokens(tmp_path / "tokens")
    assert all(token.permits(scope) for scope in Scope)


def test_later_starts_change_nothing(tmp_path: Path) -> None:
    ensure_local_token(tmp_path)
    revoke_token(tmp_path / "tokens", LOCAL_NAME)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ensure_local_token(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_start_after_one_that_ended_half_way_makes_a_new_token(tmp_path: Path) -> None:
    ensure_local_token(tmp_path)
    add_token(tmp_path / "tokens", "shop", frozenset({Scope.CHECK}))
    (tmp_path / "token").unlink()
    ensure_local_token(tmp_path)
    assert found(tmp_path) == LOCAL_NAME
    assert [token.name for token in read_tokens(tmp_path / "tokens")] == ["shop", LOCAL_NAME]
