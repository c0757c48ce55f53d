"""The README's configuration table is the settings'."""

from __future__ import annotations

import re

from stoplog_gateway.http.app import create_app
from stoplog_gateway.settings import GatewaySettings
from stoplog_worker.settings import Settings as WorkerSettings

from tests.support.broker import CHECKOUT


def rows() -> dict[str, list[str]]:
    text = (CHECKOUT / "README.md").read_text()
    cells = [
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "| `STOPLOG_" in line
    ]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_every_setting_is_in_the_table_with_its_default_and_its_reader() -> None:
    table = rows()
    gateway, worker = GatewaySettings.model_fields, WorkerSettings.model_fields
    for name in gateway.keys() | worker.keys():
        default, reader, meaning = table.pop(f"STOPLOG_{name.upper()}")
        shared = name in gateway and name in worker
        assert reader == ("all" if shared else "gateway" if name in gateway else "worker"), name
        assert meaning
        actual = (gateway.get(name) or worker[name]).default
        if isinstance(actual, int) or (isinstance(actual, str) and actual):
            assert default == str(actual), name
    assert table.keys() == {"STOPLOG_URL"}


def test_no_default_differs_between_gateway_and_worker() -> None:
    gateway, worker = GatewaySettings.model_fields, WorkerSettings.model_fields
    for name in gateway.keys() & worker.keys():
        assert gateway[name].default == worker[name].default, name


def test_whoever_uses_a_proxy_is_told_of_the_token() -> None:
    *_, meaning = rows()["STOPLOG_ADMIN_TOKEN"]
    assert "set it behind a proxy" in meaning
    assert "behind a proxy, set `STOPLOG_ADMIN_TOKEN`" in create_app(GatewaySettings()).description


def test_the_readme_names_both_commands() -> None:
    text = (CHECKOUT / "README.md").read_text()
    assert re.search(r"^make run ", text, re.MULTILINE)
    assert re.search(r"^make test ", text, re.MULTILINE)
