"""Wait while the number of partitions grows, and start again with the new number.

A worker that runs when a step of growing begins decides everything in the log, writes its last checkpoints
and becomes a new process. That process, like any worker that is started meanwhile, waits here until the step
is over. It needs nothing then but to join the group.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from typing import Final, NoReturn

from stoplog.kafka.partition_count import PartitionCountReader
from stoplog.wire.heartbeats import GrowthState
from stoplog_worker.heartbeats import HeartbeatSender
from stoplog_worker.metrics import Metrics
from stoplog_worker.settings import Settings

_log = logging.getLogger("stoplog.worker")

_POLL_S: Final = 0.2
"""Seconds between two looks at the record. Nobody's checks are decided meanwhile."""

_LOOKS_A_HEARTBEAT: Final = 3

EXIT_RESTART: Final = -1
"""Instead of an exit status: the process becomes a new one."""


async def wait_while_draining(settings: Settings, reader: PartitionCountReader) -> bool:
    """Return once no step of growing requires workers to stop; false if this worker has to end before.

    Args:
        settings: The worker's settings.
        reader: Reads the record.

    Raises:
        TopicError: The record cannot be decoded.
        Unavailable: The broker does not answer.
    """
    record = await asyncio.to_thread(reader.read_record)
    if record is None or not record.step.draining:
        return True
    _log.info(
        "waiting: the number of partitions grows from %s to %s. If `stoplog topics grow` has failed, run it "
        "again, or run `stoplog topics grow --abort`",
        record.count.partitions,
        record.step.to,
    )
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    epoch = record.step.epoch
    heartbeats = HeartbeatSender(
        settings, Metrics(), dict, list, list, lambda: GrowthState(epoch, paused=True, drained=True)
    )
    looks = 0
    try:
        while record is not None and record.step.draining and not ended.is_set():
            epoch = record.step.epoch
            if looks % _LOOKS_A_HEARTBEAT == 0:
                heartbeats.send()
            looks += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _POLL_S)
            record = await asyncio.to_thread(reader.read_record)
        if ended.is_set():
            heartbeats.announce_stop()
            _log.info("stopped")
        return not ended.is_set()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        heartbeats.close()


def restart() -> NoReturn:
    """Become a new process of the same program, with the same id, environment and inherited sockets."""
    logging.shutdown()
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
