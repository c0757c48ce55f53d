from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplog.client import limits_history
from stoplog.client.limits_admin import MAX_WAITING, LimitsAdmin, LimitsPage
from stoplog.client.transport.audit_reader import RawAudit
from stoplog.errors import Busy, InvalidId, InvalidInput, Unavailable
from stoplog.partitioning import home_of, partition_of
from stoplog.policy import Policy, parse_policy
from stoplog.wire.audit import AuditRecord, ChangeSource, encode_audit
from stoplog.wire.limit_updates import Update, UpdateKey, decode_update, encode_update_key
from stoplog.wire.partition_count import PartitionCount
from stoplog.wire.replies import UpdateReply

PARTITIONS = 3
SOURCE = ChangeSource("ops", "10.0.0.7", "r-1")
SLOW = parse_policy("1/minute")
FAST = parse_policy("100/second")


class Log:
    """The topic ``limit-updates`` in memory."""

    def __init__(self) -> None:
        self.partitions: list[list[Update]] = [[] for _ in range(PARTITIONS)]
        self.asked: list[tuple[int, str]] = []
        self.orders: list[int | None] = []
        self.audit: list[RawAudit] = []
        self.done: Callable[[str | None, int], None] = print
        self.refuses = False

    def send_update(
        self,
        partition: int,
        key: bytes,
        value: bytes | None,
        id_: str,
        done: Callable[[str | None, int], None],
        source: ChangeSource,
        order: int | None = None,
    ) -> None:
        if self.refuses:
            raise Unavailable("queue full")
        self.partitions[partition].append(decode_update(len(self.partitions[partition]), key, value, None))
        assert source == SOURCE
        self.asked.append((partition, id_))
        self.orders.append(order)
        self.done = done

    def read_updates(self, partition: int, start: int | None) -> Generator[Update, None, None]:
        yield from [u for u in self.partitions[partition] if u.version >= (start or 0)]

    def read_audit(self, partition: int, before: int | None) -> Generator[RawAudit, None, None]:
        for record in reversed(self.audit):
            if before is None or record.offset < before:
                yield record

    def record(
        self, kind: str, id_: str, resource: str = "", *, position: int | None = None, **fields: Any
    ) -> AuditRecord:
        """Append to the audit."""
        offset = len(self.audit)
        position = offset * 10 if position is None else position
        audit = AuditRecord(1, position, 7, offset, "unlimited", None, None, "ops", "", "")
        audit = msgspec.structs.replace(audit, **fields)
        key = encode_update_key(UpdateKey(kind, id_, resource))
        self.audit.append(RawAudit(offset, key, encode_audit(audit)))
        return audit

    def store(self, key: UpdateKey, policy: Policy | None) -> None:
        everywhere = key.kind in ("plan", "default")
        for partition in range(PARTITIONS) if everywhere else [partition_of(key.id, PARTITIONS)]:
            log = self.partitions[partition]
            log.append(Update(len(log), key.kind, key.id, key.resource, policy))


def admin_over(log: Log, timeout_s: float = 5.0) -> LimitsAdmin:
    return LimitsAdmin(log, count=PartitionCount(PARTITIONS), prefix="g1.", timeout_s=timeout_s)


def client(name: str) -> UpdateKey:
    return UpdateKey("client", name)


async def test_write_for_a_client_returns_when_its_partition_confirms() -> None:
    log = Log()
    admin = admin_over(log)
    change = asyncio.create_task(admin.write(client("alice"), SLOW, SOURCE))
    await asyncio.sleep(0)
    ((partition, id_),) = log.asked
    assert partition == partition_of("alice", PARTITIONS)
    admin.on_replies([UpdateReply("g1.999", True, 7, partition), UpdateReply(id_, True, 8, partition)])
    applied = await change
    assert (applied.applied, applied.version) == (True, 8)
    admin.on_replies([UpdateReply(id_, True, 8, partition)])  # a second confirmation is ignored


@pytest.mark.parametrize("key", [UpdateKey("plan", "gold"), UpdateKey("default")])
async def test_write_for_a_plan_takes_its_order_from_home_and_returns_when_all_confirm(
    key: UpdateKey,
) -> None:
    log = Log()
    admin = admin_over(log)
    change = asyncio.create_task(admin.write(key, SLOW, SOURCE))
    await asyncio.sleep(0)
    home = home_of(key.kind, key.id, PARTITIONS)
    assert [partition for partition, _ in log.asked] == [home]
    log.done(None, 17)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert {partition for partition, _ in log.asked} == {0, 1, 2}
    assert log.orders == [None, 17, 17]
    id_ = log.asked[0][1]
    one, other = {0, 1, 2} - {home}
    admin.on_replies(
        [UpdateReply(id_, True, 5, home), UpdateReply(id_, True, 9, one), UpdateReply(id_, True, 5, home)]
    )
    await asyncio.sleep(0)
    assert not change.done()
    admin.on_replies([UpdateReply(id_, True, 4, other)])
    assert (await change).version == 9


async def test_write_for_a_plan_that_its_home_does_not_take_is_sent_nowhere_else() -> None:
    log = Log()
    change = asyncio.create_task(admin_over(log).write(UpdateKey("plan", "gold"), SLOW, SOURCE))
    await asyncio.sleep(0)
    log.done("timed out", 0)
    with pytest.raises(Unavailable, match="timed out"):
        await change
    assert len(log.asked) == 1


async def test_write_for_a_plan_reaches_all_partitions_after_its_timeout() -> None:
    for timeout_s in (0.0, 60.0):
        log = Log()
        change = asyncio.create_task(
            admin_over(log, timeout_s).write(UpdateKey("plan", "gold"), SLOW, SOURCE)
        )
        await asyncio.sleep(0)
        if timeout_s:
            change.cancel()
        else:
            assert not (await change).applied
        published = log.done
        published(None, 17)
        assert {partition for partition, _ in log.asked} == {0, 1, 2}
        assert log.orders == [None, 17, 17]


async def test_write_for_a_plan_that_one_partition_does_not_take_raises_unavailable() -> None:
    log = Log()
    change = asyncio.create_task(admin_over(log).write(UpdateKey("plan", "gold"), SLOW, SOURCE))
    await asyncio.sleep(0)
    log.refuses = True
    log.done(None, 17)
    with pytest.raises(Unavailable, match="queue full"):
        await change


async def test_write_without_a_confirmation_returns_not_applied() -> None:
    log = Log()
    assert not (await admin_over(log, 0.0).write(client("alice"), None, SOURCE)).applied
    admin = admin_over(log)
    change = asyncio.create_task(admin.write(client("alice"), None, SOURCE))
    await asyncio.sleep(0)
    admin.on_replies([UpdateReply(log.asked[-1][1], False)])
    assert not (await change).applied


async def test_write_that_cannot_be_published_raises_unavailable() -> None:
    log = Log()
    change = asyncio.create_task(admin_over(log).write(client("alice"), SLOW, SOURCE))
    await asyncio.sleep(0)
    log.done("timed out", 0)
    with pytest.raises(Unavailable, match="timed out"):
        await change
    log.done("nobody hears this", 0)
    log.refuses = True
    with pytest.raises(Unavailable):
        await admin_over(log).write(client("alice"), SLOW, SOURCE)


@pytest.mark.parametrize(
    ("key", "field"),
    [
        (client(""), "client_id"),
        (UpdateKey("reset", "a\n"), "client_id"),
        (UpdateKey("plan", "x" * 300), "plan"),
        (UpdateKey("client", "a", "\x00"), "resource"),
        (UpdateKey("default", "a"), "id"),
        (UpdateKey("other", "a"), "kind"),
    ],
)
async def test_invalid_key_names_its_field(key: UpdateKey, field: str) -> None:
    log = Log()
    for call in (admin_over(log).write(key, SLOW, SOURCE), admin_over(log).get(key)):
        with pytest.raises(InvalidInput) as caught:
            await call
        assert caught.value.field == field
    assert issubclass(InvalidId, InvalidInput)
    assert not log.asked


async def test_get_returns_the_newest_policy_of_a_key() -> None:
    log = Log()
    log.store(client("alice"), SLOW)
    log.store(UpdateKey("client", "alice", "login"), SLOW)
    log.store(client("alice"), FAST)
    log.store(client("bob"), SLOW)
    log.store(client("bob"), None)
    admin = admin_over(log)
    assert await admin.get(client("alice")) == FAST
    assert await admin.get(UpdateKey("client", "alice", "login")) == SLOW
    assert await admin.get(client("bob")) is None
    assert await admin.get(UpdateKey("default")) is None


async def test_reads_are_queued_and_too_many_raise_busy() -> None:
    may_end = threading.Event()
    alone = threading.Lock()

    class Slow(Log):
        def read_updates(self, partition: int, start: int | None) -> Generator[Update, None, None]:
            assert alone.acquire(blocking=False)
            may_end.wait(10)
            alone.release()
            yield from super().read_updates(partition, start)

    log = Slow()
    log.store(client("alice"), FAST)
    admin = admin_over(log)
    gone = asyncio.create_task(admin.get(client("alice")))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    reads = [asyncio.create_task(admin.get(client("alice"))) for _ in range(1 + MAX_WAITING)]
    await asyncio.sleep(0)
    for refused in (admin.get(client("alice")), admin.page(None, 1, None)):
        with pytest.raises(Busy):
            await refused
    may_end.set()
    assert await asyncio.gather(*reads) == [FAST] * len(reads)
    assert await admin.get(client("alice")) == FAST


async def pages(admin: LimitsAdmin, limit: int, kind: str | None = None) -> list[LimitsPage]:
    found = [await admin.page(None, limit, kind)]
    while found[-1].next is not None:
        found.append(await admin.page(found[-1].next, limit, kind))
    return found


stored = st.lists(
    st.tuples(
        st.one_of(
            st.builds(UpdateKey, st.just("client"), st.sampled_from("abcdef"), st.sampled_from(["", "r"])),
            st.builds(UpdateKey, st.just("plan"), st.sampled_from("gs")),
            st.just(UpdateKey("default")),
            st.builds(UpdateKey, st.just("reset"), st.sampled_from("abc")),
        ),
        st.sampled_from([SLOW, FAST, None]),
    ),
    max_size=40,
)


@given(stored, st.integers(1, 5), st.sampled_from([None, "client", "plan", "default"]))
def test_last_item_of_each_key_on_all_pages_is_what_is_stored(
    updates: list[tuple[UpdateKey, Policy | None]], limit: int, kind: str | None
) -> None:
    log = Log()
    for key, policy in updates:
        log.store(key, policy)
    truth = {k: p for k, p in updates if k.kind != "reset" and kind in (None, k.kind)}
    expected = {k: p for k, p in truth.items() if p is not None}

    async def run() -> None:
        found = await pages(admin_over(log), limit, kind)
        assert all(len(page.items) <= limit for page in found)
        latest = {item.key: item.policy for page in found for item in page.items}
        assert {k: p for k, p in latest.items() if p is not None} == expected
        (whole,) = await pages(admin_over(log), 1_000, kind)
        assert {item.key: item.policy for item in whole.items} == expected
        assert len(whole.items) == len(expected)

    asyncio.run(run())


@pytest.mark.parametrize("after", ["", "x", "1", "1.-2", "3.0", "99999999.0", "0.1x"])
async def test_page_with_an_invalid_cursor_names_it(after: str) -> None:
    with pytest.raises(InvalidInput, match="after"):
        await admin_over(Log()).page(after, 10, None)


@pytest.mark.parametrize(("limit", "kind"), [(0, None), (1_001, None), (10, "reset"), (10, "x")])
async def test_page_with_an_invalid_limit_or_kind_is_refused(limit: int, kind: str | None) -> None:
    with pytest.raises(InvalidInput):
        await admin_over(Log()).page(None, limit, kind)


# --- history ----------------------------------------------------------------------------------


async def test_history_has_changes_and_resets_of_the_client_only_newest_first() -> None:
    log = Log()
    first = log.record("client", "alice")
    log.record("client", "alice", "login")
    log.record("client", "bob")
    log.record("plan", "alice")
    reset = log.record("reset", "alice")
    log.record("reset", "alice", "login")
    log.audit.append(RawAudit(6, encode_update_key(client("alice")), b"{"))
    again = log.record("client", "alice")
    page = await admin_over(log).history(client("alice"), None, 10)
    assert [entry.record for entry in page.items] == [again, reset, first]
    assert [entry.key.kind for entry in page.items] == ["client", "reset", "client"]
    assert page.next is None
    login = await admin_over(log).history(UpdateKey("client", "alice", "login"), None, 10)
    assert [(entry.key.kind, entry.key.resource) for entry in login.items] == [
        ("reset", "login"),
        ("reset", ""),
        ("client", "login"),
    ]
    plan = await admin_over(log).history(UpdateKey("plan", "alice"), None, 10)
    assert [entry.key for entry in plan.items] == [UpdateKey("plan", "alice")]


async def test_history_shows_a_record_of_two_lanes_once() -> None:
    log = Log()
    records = [log.record("client", "alice", position=position) for position in (5, 5, 9, 9, 5)]
    page = await admin_over(log).history(client("alice"), None, 10)
    assert [entry.record.position for entry in page.items] == [9, 5]
    assert page.items[0].record == records[3]


async def test_history_pages_reach_every_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_history, "MAX_SCAN", 3)
    log, admin = Log(), None
    wanted = [log.record("client", "alice" if number % 4 == 0 else "bob") for number in range(20)][::4]
    admin = admin_over(log)
    for limit in (1, 2, 100):
        found, before, pages = [], None, 0
        while True:
            page = await admin.history(client("alice"), before, limit)
            assert len(page.items) <= limit
            found += [entry.record for entry in page.items]
            before, pages = page.next, pages + 1
            if before is None:
                break
        assert found == wanted[::-1]
        assert pages >= 7


@pytest.mark.parametrize(
    ("before", "limit", "field"), [("x", 1, "before"), ("1.2", 1, "before"), (None, 0, "limit")]
)
async def test_invalid_page_of_history_names_its_field(before: str | None, limit: int, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await admin_over(Log()).history(client("alice"), before, limit)
    assert caught.value.field == field


# --- what there was before --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replies", "existed"),
    [([True, False, None], True), ([False, None, False], False), ([None, None, None], None)],
)
async def test_change_existed_if_any_partition_says_so(
    replies: list[bool | None], existed: bool | None
) -> None:
    log = Log()
    admin = admin_over(log)
    change = asyncio.create_task(admin.write(UpdateKey("default"), None, SOURCE))
    await asyncio.sleep(0)
    log.done(None, 17)
    id_ = log.asked[0][1]
    admin.on_replies([UpdateReply(id_, True, 5, partition, one) for partition, one in enumerate(replies)])
    assert (await change).existed is existed
