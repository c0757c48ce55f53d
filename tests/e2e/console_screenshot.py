"""Take the screenshot docs/console.png: ``python -m tests.e2e.console_screenshot [seconds]``.

It starts a system, sends checks of many clients (for 70 s by default), and looks up one client in Chromium.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from playwright.sync_api import Page, expect, sync_playwright

from tests.support.broker import CHECKOUT, fresh_broker
from tests.support.programs import path_of
from tests.support.system import Gateway, running_system

TARGET: Final = CHECKOUT / "docs" / "console.png"
HEAVY_CLIENTS: Final = {"mallory": ["20/minute", "500/hour"], "eve": ["30/minute"]}
TEAM: Final = "team-7"
"""A client with reservations."""
LIST_SIZE: Final = 40
"""Checks per request."""


def main(seconds: float = 70.0) -> None:
    """Write the screenshot after *seconds* of traffic."""
    with (
        fresh_broker() as broker,
        TemporaryDirectory(prefix="stoplog-console-") as folder,
        running_system(broker, Path(folder), deadline_ms=2_000) as system,
        sync_playwright() as playwright,
    ):
        gateway = system.gateways[0]
        system.wait_reservations()
        # A new process has not counted the reservations that failed open until then.
        gateway.stop()
        gateway.start()
        system.wait_ready()
        for client, limits in HEAVY_CLIENTS.items():
            gateway.http.put(f"/v1/limits/{client}", json={"limits": limits}).raise_for_status()
        browser = playwright.chromium.launch(executable_path=path_of("chromium"))
        page = browser.new_page(base_url=gateway.url, viewport={"width": 1240, "height": 900})
        page.goto("/console")
        expect(page.locator("#mode-name")).to_have_text("Normal")
        send_checks(gateway, page, seconds)
        work_as_a_team(gateway)
        page.get_by_label("Client id").fill(TEAM)
        page.get_by_role("button", name="Look up").click()
        expect(page.locator("#found-title")).to_be_focused()
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=TARGET, full_page=True)
        browser.close()


def work_as_a_team(gateway: Gateway) -> None:
    """Reserve units for some requests, of which one has ended."""
    gateway.set_limits(TEAM, "20000/minute", "500000/day", "10 in flight")
    asked = [{"client_id": TEAM, "cost": cost, "ttl_ms": 120_000} for cost in (4_000, 1_500, 2_500, 3_000)]
    answers = [gateway.http.post("/v1/reservations", json=one).json() for one in asked]
    used = {"used": 2_913}
    gateway.http.post(f"/v1/reservations/{answers[0]['id']}/settle", json=used).raise_for_status()


def send_checks(gateway: Gateway, page: Page, seconds: float) -> None:
    """Send about 500 checks per second, a fifth of them by clients above their limits."""
    choice = random.Random(7)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        checks = [{"client_id": client(choice)} for _ in range(LIST_SIZE)]
        gateway.http.post("/v1/checks", json=checks).raise_for_status()
        page.wait_for_timeout(choice.uniform(20, 100))


def client(choice: random.Random) -> str:
    """Return the client of the next check."""
    kind = choice.random()
    if kind < 0.14:
        return "mallory"
    if kind < 0.21:
        return "eve"
    if kind < 0.25:
        return f"scraper-{choice.randrange(9)}"
    return f"user-{choice.randrange(2_000)}"


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
