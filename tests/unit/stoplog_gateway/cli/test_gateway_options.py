from __future__ import annotations

from pathlib import Path

import pytest
import typer
from stoplog_gateway.cli.app import app
from stoplog_gateway.cli.gateway_options import find_token
from typer.testing import CliRunner

HERE = "http://127.0.0.1:8080"
ELSEWHERE = "https://stoplog.example.com"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with the token that `stoplog up` made."""
    for name in ("STOPLOG_TOKEN", "STOPLOG_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STOPLOG_HOME", str(tmp_path))
    (tmp_path / "token").write_text("from-up\n")
    return tmp_path


@pytest.mark.parametrize("url", [HERE, "http://localhost", "https://[::1]:8443"])
def test_token_of_up_is_sent_to_gateways_on_this_machine(home: Path, url: str) -> None:
    assert find_token(url) == "from-up"


@pytest.mark.parametrize("url", [ELSEWHERE, "http://127.0.0.1.example.com", "http://[", "nonsense", ""])
def test_token_of_up_is_not_sent_elsewhere(home: Path, url: str) -> None:
    assert find_token(url) is None


def test_token_of_up_is_found_in_the_working_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STOPLOG_HOME")
    monkeypatch.chdir(home)
    assert find_token(HERE) is None
    (home / ".stoplog").mkdir()
    (home / ".stoplog" / "token").write_text("from-default-folder")
    assert find_token(HERE) == "from-default-folder"


def test_named_token_goes_before_that_of_up_and_everywhere(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOPLOG_TOKEN", " from-variable\n")
    assert find_token(HERE) == find_token(ELSEWHERE) == "from-variable"
    (home / "other").write_text("from-file\n")
    monkeypatch.setenv("STOPLOG_TOKEN_FILE", str(home / "other"))
    assert find_token(HERE) == find_token(ELSEWHERE) == "from-file"


@pytest.mark.parametrize("content", [None, "", "schlüssel", "two\nlines", "\x1b[31m"])
def test_unusable_token_ends_the_command_with_2_and_is_not_shown(
    home: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = home / "other"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("STOPLOG_TOKEN_FILE", str(path))
    with pytest.raises(typer.Exit) as caught:
        find_token(HERE)
    assert caught.value.exit_code == 2
    shown = capsys.readouterr().err
    assert str(path) in shown
    assert not content or content not in shown


@pytest.mark.parametrize(
    ("options", "variable"),
    [
        (["--cacert", "{}"], "STOPLOG_CA_FILE"),
        (["--cert", "{}"], "STOPLOG_CLIENT_CERT_FILE"),
        (["--token-file", "{}"], "--token-file"),
    ],
)
def test_option_with_an_unusable_file_ends_the_command_with_2(
    tmp_path: Path, options: list[str], variable: str
) -> None:
    path = tmp_path / "missing"
    given = [option.format(path) for option in options]
    done = CliRunner().invoke(app, ["status", "--url", "https://localhost:1", *given])
    assert done.exit_code == 2
    assert str(path) in done.stderr


def test_help_names_variables_and_never_their_values() -> None:
    env = {"STOPLOG_TOKEN": "secret-token", "STOPLOG_TOKEN_FILE": "/secret/file", "COLUMNS": "200"}
    for command in (
        ["status"],
        ["limits", "set"],
        ["limits", "history"],
        ["watch"],
        ["bench"],
        ["tokens", "add"],
    ):
        done = CliRunner().invoke(app, [*command, "--help"], env=env)
        assert done.exit_code == 0
        assert "secret" not in done.stdout
        assert ("STOPLOG_TOKEN_FILE" in done.stdout) == (command[0] != "tokens")
