from __future__ import annotations

from pathlib import Path

from stoplog_gateway.server.process_folder import process_folder


def test_folders_that_no_gateway_uses_are_removed(tmp_path: Path) -> None:
    left = tmp_path / "gateways" / "left"
    left.mkdir(parents=True)
    (left / "lock").touch()
    (left / "counter_1.db").write_bytes(b"old")
    with process_folder(tmp_path) as first, process_folder(tmp_path) as second:
        assert not left.exists()
        assert first.parent == second.parent == tmp_path / "gateways"
        assert [path.name for path in first.iterdir()] == ["lock"]
    assert list(tmp_path.iterdir()) == []


def test_folder_that_was_removed_is_no_error_at_the_end(tmp_path: Path) -> None:
    with process_folder(tmp_path) as folder:
        (folder / "lock").unlink()
        folder.rmdir()
    assert list(tmp_path.iterdir()) == []
