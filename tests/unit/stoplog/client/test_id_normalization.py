"""All nodes compare ids in the same normal form."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest

import stoplog.client.engine
from stoplog.client.limiter import Limiter
from stoplog.errors import SettingsError
from stoplog.policy import parse_policy
from stoplog.wire.checks import Check
from stoplog.wire.heartbeats import Heartbeat, StampedHeartbeat, decode_heartbeat, encode_heartbeat
from stoplog.wire.limit_updates import UpdateKey
from tests.support.fake_kafka import Kafka

OTHER = Heartbeat("other", "gateway", "0.3.0", "host", 0, id_form="nfc")
DECOMPOSED = "E\u0301lise"


class Nodes(Kafka):
    """A log whose topic ``nodes`` contains heartbeats already, with milliseconds since they were stamped."""

    before: tuple[tuple[Heartbeat, int], ...] = ()

    def send_heartbeat(self, key: bytes, value: bytes) -> None:
        if not self.heartbeats:
            at_ms = decode_heartbeat(value).at_ms
            stamped = [StampedHeartbeat(one, at_ms - age_ms) for one, age_ms in self.before]
            self.loop.call_soon(self.listener.on_heartbeats, stamped)
        super().send_heartbeat(key, value)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> type[Nodes]:
    log = type("Log", (Nodes,), {})
    monkeypatch.setattr(stoplog.client.engine, "KafkaTransport", log)
    return log


def log_of(limiter: Limiter) -> Any:
    return limiter._engine.transport


async def test_all_calls_use_the_normal_form(nodes: type[Nodes]) -> None:
    async with Limiter("kafka:9092", id_normalization="nfc+casefold") as limiter:
        await limiter.check(DECOMPOSED, plan="GOLD", resource="/Login")
        await limiter.publish(DECOMPOSED)
        limiter.ask(Check(DECOMPOSED, 2))
        limiter.answer_at_once(Check(DECOMPOSED, 3))
        await limiter.check_many([Check(DECOMPOSED, 4)])
        key = UpdateKey("client", DECOMPOSED, "/Login")
        await limiter.set_limits(key, parse_policy("5/minute"))
        await asyncio.sleep(0)
        checks = [check for check in log_of(limiter).checks if check.client[:1] != "\0"]
        assert {check for check in checks if check.cost} >= {
            Check("élise", 1, "gold", "/login"),
            *(Check("élise", cost) for cost in (1, 2, 3, 4)),
        }
        assert {check.client for check in checks if check.cost} == {"élise"}
        stored = [update.key for updates in log_of(limiter).updates for update in updates]
        assert stored == [UpdateKey("client", "élise", "/login")]
        assert await limiter.get_limits(key) == parse_policy("5/minute")


@pytest.mark.parametrize("form", ["none", "nfc"])
async def test_heartbeat_announces_a_form_only_if_there_is_one(nodes: type[Nodes], form: str) -> None:
    async with Limiter("kafka:9092", id_normalization=form) as limiter:
        [heartbeat] = log_of(limiter).heartbeats
    assert heartbeat.id_form == (msgspec.UNSET if form == "none" else form)
    assert (b"id_form" in encode_heartbeat(heartbeat)) == (form != "none")


@pytest.mark.parametrize(
    ("form", "other", "age_ms", "starts"),
    [
        ("nfc", OTHER, 9_000, True),
        ("none", OTHER, 9_000, False),
        ("nfc+casefold", OTHER, 0, False),
        ("nfc", msgspec.structs.replace(OTHER, id_form=msgspec.UNSET), 0, False),
        ("none", msgspec.structs.replace(OTHER, id_form=msgspec.UNSET), 0, True),
        ("none", OTHER, 11_000, True),
        ("none", msgspec.structs.replace(OTHER, stopping=True), 0, True),
        ("none", msgspec.structs.replace(OTHER, id="me"), 0, True),
        ("nfc", msgspec.structs.replace(OTHER, role="worker", id_form=msgspec.UNSET), 0, True),
    ],
)
async def test_node_with_another_form_than_a_live_one_does_not_start(
    nodes: type[Nodes], form: str, other: Heartbeat, age_ms: int, starts: bool
) -> None:
    nodes.before = ((other, age_ms),)
    limiter = Limiter("kafka:9092", id_normalization=form, node_id="me")
    if starts:
        async with limiter:
            assert not log_of(limiter).heartbeats[-1].stopping
        return
    announced = "none" if other.id_form is msgspec.UNSET else other.id_form
    with pytest.raises(
        SettingsError, match=rf"^STOPLOG_ID_NORMALIZATION=.* other \({announced}\)\. One"
    ) as no:
        await limiter.__aenter__()
    assert f"STOPLOG_ID_NORMALIZATION={form}, but" in str(no.value)
    assert log_of(limiter).heartbeats[-1].stopping
    assert log_of(limiter).stopped
    assert not limiter.running


async def test_node_that_announces_itself_later_stops_nobody_and_is_logged(
    nodes: type[Nodes], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stoplog.client.engine, "HEARTBEAT_S", 0.0)
    monkeypatch.setattr(stoplog.client.engine, "TICK_S", 0.0)
    async with Limiter("kafka:9092") as limiter:
        own = log_of(limiter).heartbeats[0]
        limiter._engine.on_heartbeats([StampedHeartbeat(OTHER, own.at_ms)])
        async with asyncio.timeout(60):
            while "other (nfc)" not in caplog.text:  # noqa: ASYNC110 - a log line has no event
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1


async def test_later_heartbeat_in_the_same_batch_as_its_own_does_not_stop_a_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Together(Kafka):
        def send_heartbeat(self, key: bytes, value: bytes) -> None:
            own = decode_heartbeat(value)
            self.heartbeats.append(own)
            both = [StampedHeartbeat(own, own.at_ms), StampedHeartbeat(OTHER, own.at_ms)]
            self.loop.call_soon(self.listener.on_heartbeats, both)

    monkeypatch.setattr(stoplog.client.engine, "KafkaTransport", Together)
    async with Limiter("kafka:9092") as limiter:
        assert limiter.running
