"""The README's bounds, and docs/configuration.md, which is generated from the settings."""

from __future__ import annotations

import re

from stoplog_gateway.http.app import create_app
from stoplog_gateway.settings import GatewaySettings
from stoplog_worker.settings import Settings as WorkerSettings

from tests.docs_settings import PAGE, page
from tests.support.broker import CHECKOUT

README = (CHECKOUT / "README.md").read_text()


def test_readme_has_at_most_150_lines() -> None:
    assert len(README.splitlines()) <= 150


def test_readme_names_both_commands() -> None:
    assert re.search(r"^make run ", README, re.MULTILINE)
    assert re.search(r"^make test ", README, re.MULTILINE)


def test_readme_links_to_every_page_for_users() -> None:
    for file in (CHECKOUT / "docs").glob("*.md"):
        assert f"(docs/{file.name}" in README, file.name


def test_configuration_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.docs_settings"


def test_configuration_page_has_every_setting_with_its_default() -> None:
    rows = {
        cells[1].strip(" `"): cells[2].strip(" `")
        for line in PAGE.read_text().splitlines()
        if line.startswith("| `STOPLOG_")
        for cells in [line.split("|")]
    }
    for settings in (GatewaySettings, WorkerSettings):
        for name, field in settings.model_fields.items():
            default = rows[f"STOPLOG_{name.upper()}"]
            if isinstance(field.default, int) and not isinstance(field.default, bool):
                assert default == str(field.default), name
    assert rows["STOPLOG_URL"] == "http://127.0.0.1:8080"


def test_no_default_differs_between_gateway_and_worker() -> None:
    gateway, worker = GatewaySettings.model_fields, WorkerSettings.model_fields
    for name in gateway.keys() & worker.keys():
        assert gateway[name].default == worker[name].default, name


def test_docs_and_the_api_tell_users_of_proxies_to_set_a_tokens_file() -> None:
    for name in ("http-api", "proxies", "security"):
        text = " ".join((CHECKOUT / "docs" / f"{name}.md").read_text().split())
        assert re.search(r"[Bb]ehind a proxy, set `STOPLOG_TOKENS_FILE`", text), name
    assert "behind a proxy, set `STOPLOG_TOKENS_FILE`" in " ".join(
        create_app(GatewaySettings()).description.split()
    )
