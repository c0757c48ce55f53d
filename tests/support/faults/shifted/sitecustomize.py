"""Shift the wall clock of every Python process that has this folder on its path, by ``CLOCK_AHEAD_S``.

libfaketime, which shifts the brokers' clocks, does not work here. librdkafka waits with ``cnd_timedwait``,
which glibc resolves internally, so a wait of 100 ms until a shifted time would take an hour.
"""

import os
import time

if "CLOCK_AHEAD_S" in os.environ:
    _ahead_s = int(os.environ["CLOCK_AHEAD_S"])
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + _ahead_s
    time.time_ns = lambda: _time_ns() + _ahead_s * 1_000_000_000
