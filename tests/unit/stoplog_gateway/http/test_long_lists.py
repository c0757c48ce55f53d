"""Long lists are worked on in slices. One that waits for answers makes room for others."""

from __future__ import annotations

import asyncio
from asyncio import Future
from typing import Any

from stoplog_gateway.http.long_lists import MAX_BEGUN, LongLists, Work
from stoplog_gateway.http.overload import OverloadRefusals
from stoplog_gateway.http.turns import Turns

from stoplog.asgi.responses import Rendered

DEADLINE_S = 0.25


class Bench:
    """Lists whose slices are noted, and a clock that stands still."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.steps: list[str] = []
        self.refused: list[Rendered] = []
        self.lists = LongLists(Turns(DEADLINE_S, lambda: self.now), OverloadRefusals())

    def add(self, name: str, *awaited: Future[Any] | None) -> asyncio.Event:
        """Add a list that yields *awaited*; return what is set at its end."""
        ended = asyncio.Event()

        def work() -> Work:
            for number, one in enumerate(awaited):
                self.steps.append(f"{name}{number}")
                yield one
            self.steps.append(f"{name} ends")
            ended.set()

        self.lists.add(work(), self.refused.append)
        return ended


def later() -> Future[Any]:
    return asyncio.get_running_loop().create_future()


async def turns_pass() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


async def test_list_is_worked_on_until_it_waits_and_then_the_next_one_begins() -> None:
    bench, answers = Bench(), later()
    first = bench.add("a", None, None, answers)
    second = bench.add("b", None)
    await second.wait()
    await turns_pass()
    assert bench.steps == ["a0", "a1", "a2", "b0", "b ends"]
    bench.now += 10 * DEADLINE_S
    third = bench.add("c")
    await third.wait()  # a list that waits for a slow store refuses none
    answers.set_result(None)
    await first.wait()
    assert bench.steps[-1] == "a ends"
    assert not bench.refused


async def test_lists_behind_one_that_could_not_begin_in_time_are_refused() -> None:
    bench, answers = Bench(), [later() for _ in range(MAX_BEGUN)]
    begun = [bench.add(f"list {number} ", one) for number, one in enumerate(answers)]
    waiting = bench.add("one more")
    await turns_pass()
    assert len(bench.steps) == MAX_BEGUN
    bench.now += DEADLINE_S
    in_time = bench.add("in time")
    bench.now += 0.001
    bench.add("too late")
    assert [response.status for response in bench.refused] == [503]
    answers[1].set_result(None)
    await asyncio.gather(begun[1].wait(), waiting.wait(), in_time.wait())
    assert bench.steps[MAX_BEGUN:] == ["list 1  ends", "one more ends", "in time ends"]
    for one in answers[:1] + answers[2:]:
        one.set_result(None)
    await asyncio.gather(*(ended.wait() for ended in begun))
