from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from stoplog_gateway.cli.app import app
from typer.testing import CliRunner, Result


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(app, ["tokens", *arguments], env={"COLUMNS": "200", **env})


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "tokens")


def test_add_prints_the_token_and_stores_its_digest(path: str) -> None:
    done = run("add", "shop", "--scope", "check", "--scope", "read", "--file", path)
    assert done.exit_code == 0
    token = done.stdout.strip()
    line = Path(path).read_text().splitlines()[-1]
    assert line.startswith(f"shop check,read sha256:{sha256(token.encode()).hexdigest()} ")
    assert token not in line


def test_file_is_that_of_the_setting_or_of_up(tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    assert run("add", "a", "--scope", "admin", STOPLOG_HOME=home).exit_code == 0
    assert (tmp_path / "home" / "tokens").exists()
    other = str(tmp_path / "other")
    assert run("add", "b", "--scope", "admin", STOPLOG_HOME=home, STOPLOG_TOKENS_FILE=other).exit_code == 0
    listed = json.loads(run("list", "--json", STOPLOG_TOKENS_FILE=other).stdout)
    assert [(token["name"], token["scopes"]) for token in listed] == [("b", ["admin"])]


def test_list_and_revoke_show_names_and_no_texts(path: str) -> None:
    added = json.loads(run("add", "shop", "--scope", "check,read", "--json", "--file", path).stdout)
    assert added["scopes"] == ["check", "read"]
    shown = run("list", "--file", path).stdout
    assert "shop" in shown
    assert "check,read" in shown
    assert added["token"] not in shown
    assert run("revoke", "shop", "--file", path).exit_code == 0
    assert json.loads(run("list", "--json", "--file", path).stdout) == []


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["add", "shop", "--scope", "write"], 2, "unknown scope: use check, read, admin"),
        (["add", "shop"], 2, "--scope"),
        (["add", "a b", "--scope", "read"], 1, "is no name"),
        (["add", "kafka", "--scope", "read"], 1, "kafka has a meaning of its own"),
        (["revoke", "nobody"], 2, "cannot be read"),
        (["list"], 2, "cannot be read"),
    ],
)
def test_mistake_ends_with_one_message(path: str, arguments: list[str], status: int, text: str) -> None:
    done = run(*arguments, "--file", path)
    assert done.exit_code == status
    assert text in done.stderr
    assert not Path(path).exists()
