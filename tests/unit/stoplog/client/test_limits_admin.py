from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplog.client.limits_admin import MAX_WAITING, LimitsAdmin, LimitsPage
from stoplog.errors import Busy, InvalidId, InvalidInput, Unavailable
from stoplog.partitioning import home_of, partition_of
from stoplog.policy import Policy, parse_policy
from stoplog.wire.limit_updates import Update, UpdateKey, decode_update
from stoplog.wire.replies import UpdateReply

PARTITIONS = 3
SLOW = parse_policy("1/minute")
FAST = parse_policy("100/second")


class Log:
    """The topic ``limit-updates`` in memory."""

    def __init__(self) -> None:
        self.partitions: list[list[Update]] = [[] for _ in range(PARTITIONS)]
        self.asked: list[tuple[int, str]] = []
        self.orders: list[int | None] = []
        self.done: Callable[[str | None, int], None] = print
        self.refuses = False

    def send_update(
        self,
        partition: int,
        key: bytes,
        value: bytes | None,
        id_: str,
        done: Callable[[str | None, int], None],
        order: int | None = None,
    ) -> None:
        if self.refuses:
            raise Unavailable("queue full")
        self.partitions[partition].append(decode_update(len(self.partitions[partition]), key, value, None))
        self.asked.append((partition, id_))
        self.orders.append(order)
        self.done = done

    def read_updates(self, partition: int, start: int | None) -> Generator[Update, None, None]:
        yield from [u for u in self.partitions[partition] if u.version >= (start or 0)]

    def store(self, key: UpdateKey, policy: Policy | None) -> None:
        everywhere = key.kind in ("plan", "default")
        for partition in range(PARTITIONS) if everywhere else [partition_of(key.id, PARTITIONS)]:
            log = self.partitions[partition]
            log.append(Update(len(log), key.kind, key.id, key.resource, policy))


def admin_over(log: Log, timeout_s: float = 5.0) -> LimitsAdmin:
    return LimitsAdmin(log, partitions=PARTITIONS, prefix="g1.", timeout_s=timeout_s)


def client(name: str) -> UpdateKey:
    return UpdateKey("client", name)


async def test_write_for_a_client_returns_when_its_partition_confirms() -> None:
    log = Log()
    admin = admin_over(log)
    change = asyncio.create_task(admin.write(client("alice"), SLOW))
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
    change = asyncio.create_task(admin.write(key, SLOW))
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
    change = asyncio.create_task(admin_over(log).write(UpdateKey("plan", "gold"), SLOW))
    await asyncio.sleep(0)
    log.done("timed out", 0)
    with pytest.raises(Unavailable, match="timed out"):
        await change
    assert len(log.asked) == 1


async def test_write_for_a_plan_reaches_all_partitions_after_its_timeout() -> None:
    for timeout_s in (0.0, 60.0):
        log = Log()
        change = asyncio.create_task(admin_over(log, timeout_s).write(UpdateKey("plan", "gold"), SLOW))
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
    change = asyncio.create_task(admin_over(log).write(UpdateKey("plan", "gold"), SLOW))
    await asyncio.sleep(0)
    log.refuses = True
    log.done(None, 17)
    with pytest.raises(Unavailable, match="queue full"):
        await change


async def test_write_without_a_confirmation_returns_not_applied() -> None:
    log = Log()
    assert not (await admin_over(log, 0.0).write(client("alice"), None)).applied
    admin = admin_over(log)
    change = asyncio.create_task(admin.write(client("alice"), None))
    await asyncio.sleep(0)
    admin.on_replies([UpdateReply(log.asked[-1][1], False)])
    assert not (await change).applied


async def test_write_that_cannot_be_published_raises_unavailable() -> None:
    log = Log()
    change = asyncio.create_task(admin_over(log).write(client("alice"), SLOW))
    await asyncio.sleep(0)
    log.done("timed out", 0)
    with pytest.raises(Unavailable, match="timed out"):
        await change
    log.done("nobody hears this", 0)
    log.refuses = True
    with pytest.raises(Unavailable):
        await admin_over(log).write(client("alice"), SLOW)


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
    for call in (admin_over(log).write(key, SLOW), admin_over(log).get(key)):
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
