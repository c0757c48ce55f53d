"""Alerts: promtool accepts them, their unit tests pass, and the runbook covers each."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support.broker import CHECKOUT
from tests.support.programs import path_of

FOLDER: Final = CHECKOUT / "docker" / "prometheus"
RULES: Final[list[dict[str, Any]]] = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
TESTS: Final = FOLDER / "alerts_test.yml"


def promtool(*arguments: str | Path) -> str:
    """Return the output of promtool, which must find no fault."""
    done = subprocess.run([path_of("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.needs("promtool")
def test_prometheus_accepts_its_configuration() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "config", FOLDER / "prometheus.yml")


@pytest.mark.needs("promtool")
def test_alerts_pass_their_unit_tests() -> None:
    assert "SUCCESS" in promtool("test", "rules", TESTS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_is_tested_and_has_a_section_in_the_runbook(rule: dict[str, Any]) -> None:
    name = rule["alert"]
    assert re.search(rf"\b{name}\b", TESTS.read_text())
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    path, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == name.lower()
    section = (CHECKOUT / path).read_text().split(f"\n## {name}\n")
    assert len(section) == 2
    assert section[1].split("\n## ")[0].strip()


def test_dashboard_panels_do_not_overlap() -> None:
    dashboard = json.loads((CHECKOUT / "docker" / "grafana" / "dashboards" / "stoplog.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
