from __future__ import annotations

import asyncio
import logging

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from stoplog_gateway.access import refusals as module
from stoplog_gateway.access.refusals import NO_TOKEN, UNKNOWN_TOKEN, Refusals


def test_delay_doubles_for_each_address_up_to_two_seconds_and_is_forgotten_after_a_minute() -> None:
    now = [0.0]
    refusals = Refusals(clock=lambda: now[0])
    assert [refusals.next_delay("192.0.2.1") for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert refusals.next_delay("192.0.2.2") == 0.1
    now[0] = 60.0
    assert refusals.next_delay("192.0.2.1") == 2.0
    now[0] = 121.0
    assert refusals.next_delay("192.0.2.1") == 0.1


def test_delay_is_shared_by_the_addresses_that_one_host_can_use() -> None:
    refusals = Refusals()
    assert refusals.next_delay("2001:db8::1") == 0.1
    assert refusals.next_delay("2001:db8::ffff") == 0.2
    assert refusals.next_delay("2001:db8:0:1::1") == 0.1
    assert refusals.next_delay("192.0.2.1") == 0.1
    assert refusals.next_delay("::ffff:192.0.2.1") == 0.2


def test_addresses_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_ADDRESSES", 3)
    refusals = Refusals()
    for number in range(4):
        refusals.next_delay(f"192.0.2.{number}")
    assert refusals.next_delay("192.0.2.3") == 0.2
    assert refusals.next_delay("192.0.2.0") == 0.1


async def test_more_than_the_maximum_of_waiting_responses_are_not_delayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    refusals = Refusals(first_delay_s=1_000.0)
    waiting = [asyncio.create_task(refusals.add(NO_TOKEN, "read", f"192.0.2.{n}")) for n in range(3)]
    await asyncio.sleep(0)
    await refusals.add(NO_TOKEN, "read", "192.0.2.9")  # returns at once
    assert not any(task.done() for task in waiting)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    late = asyncio.create_task(refusals.add(NO_TOKEN, "read", "192.0.2.9"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not late.done()
    late.cancel()


async def test_refusals_are_counted_and_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(first_delay_s=0)
    for _ in range(50):
        await refusals.add(UNKNOWN_TOKEN, "admin", "192.0.2.1")
    await refusals.add("missing_scope", "admin", "192.0.2.1", "shop")
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 2
    assert "192.0.2.1" in lines[0]
    assert "with token shop" in lines[1]
    registry = CollectorRegistry()
    registry.register(refusals)
    page = generate_latest(registry).decode()
    assert 'stoplog_requests_refused_total{reason="unknown_token",scope="admin"} 50.0' in page
    assert 'stoplog_requests_refused_total{reason="missing_scope",scope="admin"} 1.0' in page
    assert 'stoplog_requests_refused_total{reason="no_token",scope="check"} 0.0' in page
