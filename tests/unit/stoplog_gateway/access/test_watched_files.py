from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from stoplog_gateway.access import watched_files
from stoplog_gateway.access.control import AccessControl
from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.access.tokens_file import TokensFileError, add_token, revoke_token
from stoplog_gateway.access.watched_files import WatchedFiles

CHECK = frozenset({Scope.CHECK})


def settle(files: WatchedFiles) -> None:
    """Read the files twice, as the watcher does in two turns."""
    files.update(files.read())
    files.update(files.read())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def metrics(access: AccessControl) -> str:
    registry = CollectorRegistry()
    registry.register(access.files)
    return generate_latest(registry).decode()


async def test_tokens_are_read_again_while_the_gateway_runs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_files, "POLL_S", 0.01)
    first = add_token(path, "first", CHECK).encode()
    access = AccessControl(tokens_file=path)
    assert access.tokens is not None
    changed = asyncio.Event()
    access.tokens.on_change(changed.set)
    watching = asyncio.create_task(access.files.run())
    second = add_token(path, "second", CHECK).encode()
    await asyncio.wait_for(changed.wait(), 60)
    assert access.tokens.find(second)
    changed.clear()
    revoke_token(path, "first")
    await asyncio.wait_for(changed.wait(), 60)
    assert not access.tokens.find(first)
    watching.cancel()


def test_unusable_file_keeps_the_old_tokens_with_one_error_and_a_metric(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = add_token(path, "shop", CHECK).encode()
    access = AccessControl(tokens_file=path)
    [files] = access.files._watched
    assert access.tokens is not None
    good = path.read_bytes()
    for broken in (b"nonsense\n", None):
        caplog.clear()
        if broken is None:
            path.unlink()
        else:
            path.write_bytes(good + broken)
        for _ in range(5):
            settle(files)
        assert access.tokens.find(text)
        [record] = [it for it in caplog.records if it.levelno == logging.ERROR]
        assert str(path) in record.getMessage()
        assert broken is None or "line 3" in record.getMessage()
        assert 'stoplog_files_stale{what="tokens"} 1.0' in metrics(access)
    path.write_bytes(good)
    settle(files)
    assert 'stoplog_files_stale{what="tokens"} 0.0' in metrics(access)
    assert 'stoplog_file_reloads_total{result="failed",what="tokens"} 2.0' in metrics(access)
    assert 'stoplog_file_reloads_total{result="loaded",what="tokens"} 1.0' in metrics(access)


def test_file_that_is_being_written_is_not_used(path: Path) -> None:
    text = add_token(path, "shop", CHECK).encode()
    access = AccessControl(tokens_file=path)
    [files] = access.files._watched
    assert access.tokens is not None
    good = path.read_bytes()
    path.write_bytes(b"")
    files.update(files.read())
    assert access.tokens.find(text)
    path.write_bytes(good)
    settle(files)
    assert access.tokens.find(text)
    assert files.loaded == 0
    path.write_bytes(b"")
    settle(files)
    assert not access.tokens.find(text)


def test_change_during_the_start_is_noticed(path: Path) -> None:
    add_token(path, "shop", CHECK)
    loads = []

    def load() -> None:
        loads.append(path.read_bytes())
        if len(loads) == 1:
            add_token(path, "other", CHECK)

    files = WatchedFiles("tokens", [path], load)
    settle(files)
    assert len(loads) == 2
    assert b"other" in loads[1]


def test_unusable_file_at_the_start_is_an_error_with_file_and_line(path: Path) -> None:
    with pytest.raises(TokensFileError, match=str(path)):
        AccessControl(tokens_file=path)
    path.write_text("\nnonsense\n")
    with pytest.raises(TokensFileError, match=f"{path}, line 2: "):
        AccessControl(tokens_file=path)
