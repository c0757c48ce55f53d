from __future__ import annotations

import re

import httpx


async def test_page_and_all_files_it_loads_are_served(http: httpx.AsyncClient) -> None:
    page = await http.get("/console")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    modules = {"console/console.js"}
    found = set(re.findall(r'(?:src|href)="(?!#)([^"]*)"', page.text))
    assert modules < found
    while modules:  # follow the imports
        name = modules.pop()
        part = await http.get(f"/{name}")
        assert part.headers["content-type"].startswith("text/javascript")
        fresh = {f"console/{other}" for other in re.findall(r"from '\./(.*)'", part.text)} - found
        modules, found = modules | fresh, found | fresh
    for name in found:
        part = await http.get(f"/{name}")
        assert part.status_code == 200, name
        assert "default-src 'none'" in part.headers["content-security-policy"]
        assert part.headers["x-content-type-options"] == "nosniff"


async def test_policy_allows_requests_to_the_gateway_only(http: httpx.AsyncClient) -> None:
    policy = (await http.get("/console")).headers["content-security-policy"]
    sources = {word for rule in policy.split("; ") for word in rule.split()[1:]}
    assert sources == {"'none'", "'self'", "'script'"}
    assert "require-trusted-types-for 'script'" in policy  # client ids never become markup
    assert "frame-ancestors 'none'" in policy


async def test_file_outside_the_console_is_a_404(http: httpx.AsyncClient) -> None:
    for name in ("console.py", "..%2Fapp.py", "", "console.js/"):
        assert (await http.get(f"/console/{name}")).status_code == 404
