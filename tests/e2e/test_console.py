"""The console in a real browser, on a real system: it shows the real state, and its actions take effect."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from stoplog_gateway.access.local_token import TOKEN_FILE, ensure_local_token
from stoplog_gateway.local.kafka_broker import Broker

from tests.support.programs import path_of
from tests.support.system import Gateway, System, eventually, running_system

pytestmark = pytest.mark.needs("chromium")

HOSTILE: Final = "<img src=x onerror=alert(1)>\u202e/..?#&"
"""An id that contains markup, reverses the direction of writing, and needs escaping in a URL."""
SHOWN: Final = HOSTILE.replace("\u202e", r"\u202e")
LONG: Final = "W" * 256
ACCESSIBLE: Final = Path(__file__).with_name("accessible.js").read_text()
PHONE: Final = 360


@pytest.fixture(scope="module")
def system(fresh_kafka: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("console")
    # A busy machine does not miss this deadline: only a stopped worker does.
    settings: dict[str, Any] = {"deadline_ms": 3_000, "breaker_misses": 1}
    settings["tokens_file"] = ensure_local_token(folder)
    with running_system(fresh_kafka, folder, **settings) as running:
        token = (folder / TOKEN_FILE).read_text().strip()
        running.gateways[0].http.headers["Authorization"] = f"Bearer {token}"
        yield running


@pytest.fixture(scope="module")
def token(system: System) -> str:
    return (system.folder / TOKEN_FILE).read_text().strip()


@pytest.fixture(scope="module")
def gateway(system: System) -> Gateway:
    return system.gateways[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path_of("chromium"))
        yield browser
        browser.close()


@pytest.fixture
def locked_page(browser: Browser, gateway: Gateway) -> Iterator[Page]:
    """Open the console, which has no token yet. The browser must log no errors or warnings."""
    logged: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # The page shows refusals of the gateway. The browser logs them as well.
        if message.type in ("error", "warning") and "/v1/" not in message.location["url"]:
            logged.append(message.text)

    with browser.new_context(base_url=gateway.url, viewport={"width": 1240, "height": 900}) as context:
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: logged.append(str(error)))
        page.goto("/console")
        yield page
        assert logged == []


@pytest.fixture
def page(locked_page: Page, token: str) -> Page:
    """Open the console, enter the token, and wait until it shows the mode."""
    locked_page.locator("#token").fill(token)
    expect(locked_page.locator("#mode-name")).to_have_text("Normal")
    return locked_page


def reject(gateway: Gateway, client: str) -> None:
    """Send five checks of *client*, of which two are allowed and three rejected."""
    gateway.http.put("/v1/limits/" + quote(client, safe=""), json={"limits": ["2/hour"]}).raise_for_status()
    assert [gateway.check(client)["allowed"] for _ in range(5)] == [True, True, False, False, False]


def look_up(page: Page, client: str) -> None:
    page.get_by_label("Client id").fill(client)
    page.get_by_role("button", name="Look up").click()
    expect(page.locator("#found-title")).to_be_focused()


def test_console_after_traffic_shows_its_counts(page: Page, gateway: Gateway) -> None:
    reject(gateway, HOSTILE)
    for kind in ("allowed", "rejected"):
        counted = gateway.count(f"stoplog_checks_{kind}_total")
        assert counted > 0
        expect(page.locator(f"#{kind}")).to_have_text(f"{counted:,}")
    expect(page.locator("#allowed-rate")).to_have_text(re.compile(r"^0\.[1-9]$"))
    expect(page.locator("#rejected-rate")).to_have_text(re.compile(r"^0\.[1-9]$"))
    expect(page.locator("#median")).to_have_text(re.compile(r"^[\d.]+ ms$"))
    expect(page.locator("#line-rejected")).to_have_attribute("d", re.compile(r"^M.*L"))
    row = page.locator("#rejected-rows tr")
    expect(page.locator("#rejected-empty")).to_be_hidden()
    expect(row.get_by_role("button")).to_have_text(SHOWN)
    expect(row.locator(".number")).to_have_text("3")
    expect(page.get_by_role("link", name="enter it")).to_be_hidden()
    row.get_by_role("button").click()
    expect(page.locator("#found-title")).to_have_text(SHOWN)
    nodes = page.locator("#node-rows")
    expect(nodes.get_by_role("row").filter(has_text="worker-1")).to_contain_text(re.compile("running 0.3"))
    expect(nodes.get_by_role("row").filter(has_text="gateway-1")).to_be_visible()
    assert page.locator("main img").count() == 0


def test_console_without_a_token_asks_for_one_and_shows_nothing(
    locked_page: Page, gateway: Gateway, token: str
) -> None:
    page = locked_page
    reject(gateway, "secret")
    expect(page.locator("#mode-name")).to_have_text("This page needs a token")
    expect(page.locator("#mode-since")).to_contain_text("a token with the scope read")
    expect(page.locator("#rejected-table")).to_be_hidden()
    assert page.evaluate(ACCESSIBLE) == []
    page.get_by_label("Client id").fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#outcome")).to_contain_text("Failed: this request needs a token")
    expect(page.locator("#token")).to_be_focused()
    page.get_by_role("link", name="enter it").click()
    expect(page.locator("#token")).to_be_focused()
    page.keyboard.type("wrong")
    expect(page.locator("#mode-since")).to_contain_text("the token is unknown")
    page.locator("#token").fill(token)
    expect(page.locator("#mode-name")).to_have_text("Normal")
    expect(page.locator("#rejected-rows")).to_contain_text("secret")
    expect(page.get_by_role("link", name="enter it")).to_be_hidden()


def test_client_looked_up_can_be_changed_reset_and_freed(page: Page, gateway: Gateway) -> None:
    reject(gateway, HOSTILE + "2")
    client = HOSTILE + "2"
    look_up(page, client)
    row = page.locator("#window-rows tr")
    expect(page.locator("#found-policy")).to_contain_text("its own limits")
    expect(row).to_have_text([re.compile(r"^2 per hour\s*2\s*0\s*(1 h|60 min|59 min)")])

    page.get_by_label("New limits").fill("3/hour, 7/day")
    page.get_by_role("button", name="Save limits").click()
    expect(page.locator("#done")).to_have_text("Limits saved.")
    expect(row).to_have_text([re.compile(r"^7 per day\s*2\s*5"), re.compile(r"^3 per hour\s*2\s*1")])
    assert [gateway.check(client)["allowed"] for _ in range(2)] == [True, False]

    page.get_by_role("button", name="Reset counters").click()
    dialog = page.get_by_role("dialog", name=re.compile("^Reset the client.s counters"))
    expect(dialog).to_contain_text(SHOWN + "2")
    dialog.get_by_role("button", name="Reset counters").click()
    expect(page.locator("#done")).to_have_text("Counters reset.")
    expect(row).to_have_text([re.compile(r"^7 per day\s*0\s*7"), re.compile(r"^3 per hour\s*0\s*3")])
    assert gateway.check(client)["allowed"]

    page.get_by_role("button", name="Delete own limits").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete limits").click()
    expect(page.locator("#done")).to_have_text("Limits deleted.")
    expect(page.locator("#found-policy")).to_contain_text("the built-in default")
    expect(page.get_by_role("button", name="Delete own limits")).to_be_hidden()
    assert gateway.check(client)["limit"] == 100

    page.get_by_label("New limits").fill("many")
    page.get_by_role("button", name="Save limits").click()
    expect(page.locator("#done")).to_contain_text("'many' is not a limit")


def test_lookup_with_plan_and_resource_shows_their_limits(page: Page, gateway: Gateway) -> None:
    gateway.http.put("/v1/plans/gold?resource=login", json={"limits": ["9/minute"]}).raise_for_status()
    gateway.http.put("/v1/limits/free", json={"limits": "unlimited"}).raise_for_status()
    page.get_by_label("Plan").fill("gold")
    page.get_by_label("Resource").fill("login")
    look_up(page, "alice")
    expect(page.locator("#found-policy")).to_contain_text("the limits of plan gold for resource login")
    expect(page.locator("#window-rows tr")).to_have_text([re.compile("^9 per minute")])
    expect(page.get_by_role("button", name="Delete own limits")).to_be_hidden()
    page.get_by_label("Plan").fill("")
    page.get_by_label("Resource").fill("")
    look_up(page, "free")
    expect(page.locator("#found")).to_contain_text("Unlimited: no check is counted.")
    page.get_by_label("Client id").fill("..")
    page.keyboard.press("Enter")
    expect(page.locator("#outcome")).to_contain_text("a browser cannot request this id")


def test_lookup_shows_what_is_held(page: Page, system: System, gateway: Gateway) -> None:
    system.wait_reservations()
    gateway.set_limits("team-7", "100/hour", "3 in flight")
    reserve = {"client_id": "team-7", "cost": 30, "ttl_ms": 3_600_000}
    answers = [gateway.http.post("/v1/reservations", json=reserve).json() for _ in range(2)]
    gateway.check("team-7", cost=7)
    look_up(page, "team-7")
    row = page.locator("#window-rows tr")
    expect(row).to_have_text(
        [
            re.compile(r"^100 per hour\s*67 60 held\s*33\s*"),
            re.compile(r"^3 in flight\s*2\s*1\s*(1 h|59 min)"),
        ]
    )
    holds = page.locator("#holds")
    expect(holds).to_have_text(
        re.compile(r"^Held: 2 open reservations with 60 units, the next one ends in (1 h|59 min.*)\.$")
    )
    assert page.evaluate(ACCESSIBLE) == []
    gateway.http.post(f"/v1/reservations/{answers[0]['id']}/settle", json={"used": 5}).raise_for_status()
    page.get_by_role("button", name="Refresh").click()
    expect(row.first).to_have_text(re.compile(r"^100 per hour\s*42 30 held\s*58"))
    expect(holds).to_have_text(re.compile(r"^Held: 1 open reservation with 30 units, it ends in "))
    gateway.http.delete(f"/v1/reservations/{answers[1]['id']}").raise_for_status()
    page.get_by_role("button", name="Refresh").click()
    expect(holds).to_have_text("Held: nothing.")
    gateway.set_limits("team-7", "0 in flight")
    page.get_by_role("button", name="Refresh").click()
    expect(row).to_have_text([re.compile(r"^blocked \(0 in flight\)")])


def test_console_by_keyboard_alone_offers_every_action(
    locked_page: Page, gateway: Gateway, token: str
) -> None:
    page = locked_page

    def focus_on(name: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            focused = page.locator(":focus")
            outline = "element => parseFloat(getComputedStyle(element).outlineWidth)"
            assert focused.evaluate(outline) > 1, focused.evaluate("element => element.outerHTML")
            if name in focused.evaluate("element => element.labels?.[0]?.textContent ?? element.textContent"):
                return
        raise AssertionError(f"the Tab key does not reach {name}")

    focus_on("Skip to the client lookup")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Client id")).to_be_focused()
    page.keyboard.type("keen")
    focus_on("Token")
    page.keyboard.type(token)
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Look up")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#found-title")).to_be_focused()
    focus_on("New limits")
    page.keyboard.type("5/hour")
    page.keyboard.press("Enter")
    expect(page.locator("#done")).to_have_text("Limits saved.")
    assert gateway.check("keen")["limit"] == 5
    focus_on("Reset counters")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Reset counters")).to_be_focused()
    assert gateway.check("keen", cost=0)["remaining"] == 4
    page.keyboard.press("Enter")
    focus_on("Reset counters")  # in the dialog: the page behind it cannot get the focus
    page.keyboard.press("Enter")
    expect(page.locator("#done")).to_have_text("Counters reset.")
    assert gateway.check("keen", cost=0)["remaining"] == 5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_console_for_screen_readers_has_no_violations(page: Page, gateway: Gateway, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    reject(gateway, f"{scheme} read")
    look_up(page, f"{scheme} read")
    assert page.evaluate(ACCESSIBLE) == []
    expect(page.locator("#rejected-rows")).to_contain_text(f"{scheme} read")
    for mode in ("normal", "degraded", "silent", "waiting"):
        assert page.evaluate(f"() => {{ document.getElementById('mode').dataset.mode = '{mode}' }}") is None
        assert page.evaluate(ACCESSIBLE) == []
    expect(page.get_by_role("banner")).to_be_visible()
    expect(page.get_by_role("main")).to_be_visible()
    for region in ("Checks per second", "Most rejected clients", "Look up a client", "Nodes"):
        expect(page.get_by_role("region", name=region)).to_be_visible()


def test_console_on_phone_width_fits_without_sideways_scrolling(page: Page, gateway: Gateway) -> None:
    page.set_viewport_size({"width": PHONE, "height": 740})
    reject(gateway, LONG)
    expect(page.locator("#rejected-rows")).to_contain_text(LONG)
    look_up(page, LONG)
    page.get_by_role("button", name="Reset counters").click()
    for part in ("html", "dialog"):
        assert page.locator(part).evaluate("element => element.scrollWidth - element.clientWidth") == 0
    assert page.locator("html").evaluate("element => element.clientWidth") == PHONE


def test_docs_page_loads_nothing_from_elsewhere(page: Page, gateway: Gateway) -> None:
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto("/docs")
    expect(page.get_by_text("May this client spend this now?")).to_be_visible()
    assert [url for url in urls if not url.startswith((gateway.url, "data:"))] == []


def test_console_during_outage_shows_degraded_and_silence(
    page: Page, system: System, gateway: Gateway
) -> None:
    announcement = page.locator("#announcement")
    expect(announcement).to_have_text("Mode: Normal")  # it was locked before
    worker = system.workers[0]
    worker.signal(signal.SIGSTOP)
    eventually("checks fail open", lambda: gateway.check("anybody")["degraded"])
    expect(page.locator("#mode-name")).to_have_text("Degraded")
    stopped = page.locator("#node-rows").get_by_role("row").filter(has_text="worker-1")
    expect(stopped.locator(".late")).to_have_text(re.compile(r"^silent ([5-9]|10) s$"))
    expect(page.locator("#mode-through")).to_contain_text("Partitions that fail open:")
    expect(page.locator("#mode-why")).to_contain_text("Is its worker running?")
    expect(announcement).to_have_text("Mode: Degraded")
    expect(page).to_have_title("DEGRADED · Stoplog")
    expect(page.locator("#degraded")).to_have_text(f"{gateway.metric('stoplog_checks_degraded_total'):,.0f}")
    page.get_by_label("Client id").fill("anybody")
    page.keyboard.press("Enter")
    expect(page.locator("#outcome")).to_contain_text("did not reply: check that it runs")
    worker.signal(signal.SIGCONT)
    expect(page.locator("#mode-name")).to_have_text("Normal")
    expect(announcement).to_have_text("Mode: Normal")
    gateway.stop()
    expect(page.locator("#mode-name")).to_have_text("This gateway does not answer")
    expect(page.locator("#mode-since")).to_contain_text("The values below are as of")
    expect(page).to_have_title("No answer · Stoplog")
