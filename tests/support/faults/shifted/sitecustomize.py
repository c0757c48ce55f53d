"""Imported by every Python started with this folder on its path: its wall clock is ``CLOCK_AHEAD_S`` off.

Not by libfaketime, as the brokers': librdkafka waits with ``cnd_timedwait``, which glibc resolves inside
itself, so that a wait of 100 ms up to a shifted time would take an hour.
"""

import os
import time

if "CLOCK_AHEAD_S" in os.environ:
    _ahead_s = int(os.environ["CLOCK_AHEAD_S"])
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + _ahead_s
    time.time_ns = lambda: _time_ns() + _ahead_s * 1_000_000_000
