"""Load on Redis: a sliding window as a script, in single calls or 50 in a pipeline. No HTTP.

The usual script has two buckets, and weights the older one by the part that the window still covers. That is
cheap, but it can admit almost twice the limit (docs/design/algorithm.md). Runs in the peers' environment.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any, Final

import redis

from tests.benchmarks.client_ids import client_id, picker
from tests.benchmarks.orders import Stopwatch, carry_out_orders

_SCRIPT: Final = """
local limit, window, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local tick = math.floor(now / window)
local state = redis.call('HMGET', KEYS[1], 't', 'c', 'p')
local at, current, previous = tonumber(state[1]) or 0, tonumber(state[2]) or 0, tonumber(state[3]) or 0
if at == tick - 1 then
  previous, current = current, 0
elseif at ~= tick then
  previous, current = 0, 0
end
local used = current + previous * (1 - (now % window) / window)
if used + cost > limit then return {0, math.floor(limit - used)} end
redis.call('HSET', KEYS[1], 't', tick, 'c', current + cost, 'p', previous)
redis.call('PEXPIRE', KEYS[1], 2 * window)
return {1, math.floor(limit - used - cost)}
"""
_ARGUMENTS: Final = (1_000_000, 60_000, 1)


def main(port: int) -> None:
    """Carry out orders: ``pipelined`` is the number of calls in a pipeline."""
    client = redis.Redis(port=port)
    digest = client.script_load(_SCRIPT)

    def run(order: dict[str, Any]) -> dict[str, Any]:
        watch = Stopwatch(order["warmup_s"], order["seconds"])
        pick = picker(order["clients"], "uniform", order["seed"])
        size = order["pipelined"]
        going = True
        while going:
            sent_at = perf_counter()
            if size == 1:
                client.evalsha(digest, 1, client_id(pick()), *_ARGUMENTS)
            else:
                pipeline = client.pipeline(transaction=False)
                for _ in range(size):
                    pipeline.evalsha(digest, 1, client_id(pick()), *_ARGUMENTS)
                pipeline.execute()
            going = watch.done(size, sent_at)
        return watch.figures()

    carry_out_orders(run)


if __name__ == "__main__":
    main(int(sys.argv[1]))
