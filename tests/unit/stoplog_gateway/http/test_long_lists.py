"""Long lists are worked on one after the other, and may wait for answers without taking the event loop."""

from __future__ import annotations

import asyncio

from stoplog_gateway.http.long_lists import LongLists, Work
from stoplog_gateway.http.overload import OverloadRefusals
from stoplog_gateway.http.turns import Turns

from stoplog.asgi.responses import Rendered


def refuse(rendered: Rendered) -> None:
    raise AssertionError(rendered)


async def test_list_that_waits_for_answers_takes_no_turns_and_those_behind_it_wait() -> None:
    steps: list[str] = []
    answers = asyncio.get_running_loop().create_future()
    waits, ended = asyncio.Event(), asyncio.Event()

    def first() -> Work:
        steps.append("asked")
        yield None
        steps.append("waits")
        waits.set()
        yield answers
        steps.append("answered")

    def second() -> Work:
        steps.append("second")
        yield None
        ended.set()

    lists = LongLists(Turns(), OverloadRefusals())
    lists.add(first(), refuse)
    lists.add(second(), refuse)
    await waits.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert steps == ["asked", "waits"]
    answers.set_result(None)
    await ended.wait()
    assert steps == ["asked", "waits", "answered", "second"]
    later = asyncio.Event()

    def third() -> Work:
        later.set()
        yield None

    lists.add(third(), refuse)
    await later.wait()
