"""`stoplog gateway --processes N`: fork N gateway processes on one port, and restart those that end.

Each process opens its own listening socket on the shared port when it can answer requests, and closes it when
it ends. The kernel distributes new connections over the listening sockets, so no connection waits for a
process that is dead or starting. The parent has no thread, no connection and no event loop when it forks.
This makes forking safe and restarts cheap.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import signal
import sys
import time
from contextlib import ExitStack, suppress
from math import inf
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Final

from stoplog.errors import SettingsError, StoplogError
from stoplog.log_throttle import LogThrottle
from stoplog_gateway.envoy import claim_envoy_address
from stoplog_gateway.server.process_folder import process_folder
from stoplog_gateway.server.process_slot import ProcessSlot
from stoplog_gateway.server.restart_backoff import RestartBackoff
from stoplog_gateway.server.server import serve
from stoplog_gateway.settings import GatewaySettings

log: Final = logging.getLogger(__name__)

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MAX_WAIT_S: Final = 3600.0

_REPEAT_S: Final = 600.0
"""Seconds between two identical lines about a process that keeps ending."""

_SERVES: Final = "serves"
"""Message of a process that accepts requests."""

_Message = StoplogError | str
"""The reason for the end of a process, which it sends before."""

_fork: Final = multiprocessing.get_context("fork")


def serve_forked(settings: GatewaySettings) -> None:
    """Serve with ``settings.processes`` processes until SIGINT, SIGTERM or SIGHUP.

    A second signal kills the processes. A process that ends by itself is restarted. An error that a restart
    would meet again ends the gateway only if no process has served yet: those that serve go on.

    Raises:
        SettingsError: The system is not Linux, or STOPLOG_HOME is not writable.
        CannotListen: The port or the address for Envoy cannot be used.
        TopicError: topics.yaml cannot be read, or the broker's topics contradict it.
    """
    if sys.platform != "linux":
        raise SettingsError(
            f"STOPLOG_PROCESSES={settings.processes}: only Linux distributes connections to a shared port "
            f"evenly; start several gateways on ports of their own"
        )
    with ExitStack() as stack:
        folder = stack.enter_context(process_folder(settings.home))
        if settings.envoy is not None:
            for sock in claim_envoy_address(settings.envoy):
                stack.enter_context(sock)
        signals = _handled_signals()
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # sigtimedwait receives blocked signals
        pipe_read, pipe_write = os.pipe()
        first_reply_slot = secrets.randbits(32)
        processes = [
            _SupervisedProcess(
                settings, ProcessSlot(number, first_reply_slot + number, folder, pipe_read), pipe_write
            )
            for number in range(1, settings.processes + 1)
        ]
        stack.callback(_stop, processes, signals, settings.stop_s)
        _supervise(processes, signals)


def _handled_signals() -> list[signal.Signals]:
    """Return the signals to wait for.

    A signal that was ignored at the start (`nohup`, `&`) is left out, because a blocked signal is delivered
    even if it is ignored.
    """
    stopping = [number for number in _STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return [*stopping, signal.SIGCHLD]


def _supervise(processes: list[_SupervisedProcess], signals: list[signal.Signals]) -> None:
    """Start and restart *processes* until a stop signal arrives.

    Raises:
        StoplogError: A process ended with this error before any of them has served.
    """
    while True:
        served = any(process.has_served() for process in processes)
        for process in processes:
            process.update(ends_at_errors=not served)
        seconds = min(process.start_at for process in processes) - time.monotonic()
        received = signal.sigtimedwait(signals, min(max(seconds, 0.0), _MAX_WAIT_S))
        if received is not None and received.si_signo in _STOP_SIGNALS:
            return


def _stop(processes: list[_SupervisedProcess], signals: list[signal.Signals], stop_s: float) -> None:
    """Terminate *processes*, and kill those that still run after *stop_s* or at a second stop signal."""
    until = time.monotonic() + stop_s
    for process in processes:
        process.terminate()
    while any(process.running for process in processes):
        received = signal.sigtimedwait(signals, max(until - time.monotonic(), 0.0))
        if received is None or received.si_signo in _STOP_SIGNALS:
            for process in processes:
                process.kill()


class _SupervisedProcess:
    """The process in one slot, as the parent sees it: start, end, restart.

    Args:
        settings: The gateway's settings.
        slot: Slot of the process.
        pipe_write: The parent's end of the pipe of ``slot.parent_pipe``.
    """

    def __init__(self, settings: GatewaySettings, slot: ProcessSlot, pipe_write: int) -> None:
        name = settings.node_id and f"{settings.node_id}-{slot.number}"
        self._settings = settings.model_copy(update={"node_id": name})
        self._slot = slot
        self._pipe_write = pipe_write
        self._backoff = RestartBackoff()
        self._throttle = LogThrottle(_REPEAT_S)
        self._process: ForkProcess | None = None
        self._messages: list[_Message] = []
        """The reports of the process so far."""
        self._served = False
        self.start_at = 0.0
        """Time of the next start (monotonic clock); infinite while the process runs."""

    @property
    def running(self) -> bool:
        """Whether the process runs now."""
        return self._process is not None and self._process.is_alive()

    def has_served(self) -> bool:
        """Return whether a process in this slot has ever accepted requests."""
        self._receive()
        return self._served

    def update(self, *, ends_at_errors: bool) -> None:
        """Handle the end of the process, and start it when its time has come.

        Args:
            ends_at_errors: Whether the gateway ends at an error that a restart would meet again.

        Raises:
            StoplogError: The process ended with this error.
        """
        if self._process is not None and not self._process.is_alive():
            reason = self._on_end(self._process)
            if isinstance(reason, StoplogError) and ends_at_errors:
                raise reason
            self._wait(f"ended ({reason})")
        if time.monotonic() >= self.start_at:
            self._start()

    def terminate(self) -> None:
        """Send SIGTERM."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        if self._process is not None:
            self._process.kill()

    def _start(self) -> None:
        self._backoff.on_start()
        self._receiver, sender = _fork.Pipe(duplex=False)
        process = _fork.Process(target=self._serve, args=(sender,))
        try:
            process.start()
        except OSError as exc:  # no memory or no process left: the others go on
            self._receiver.close()
            self._wait(f"could not be started ({exc.strerror})")
        else:
            self._process, self.start_at = process, inf
        finally:
            sender.close()

    def _receive(self) -> None:
        """Take what the process has sent."""
        if self._process is None:
            return
        with suppress(EOFError):
            while self._receiver.poll():
                message = self._receiver.recv()
                if message == _SERVES:
                    self._served = True
                else:
                    self._messages.append(message)

    def _on_end(self, process: ForkProcess) -> _Message:
        """Return why *process* ended."""
        self._receive()
        self._receiver.close()
        reason = self._messages.pop() if self._messages else f"status {process.exitcode}"
        self._process = None
        process.close()
        self._slot.clean_up()
        return reason

    def _wait(self, why: str) -> None:
        """Wait for the next start. A process that keeps ending is logged less often."""
        delay = self._backoff.next_delay()
        self.start_at = time.monotonic() + delay
        suppressed = self._throttle.admit(why) if self._backoff.keeps_ending else ""
        if suppressed is not None:
            log.warning(
                "process %d %s; starting it again in %.1f s%s", self._slot.number, why, delay, suppressed
            )

    def _serve(self, sender: Connection) -> None:
        """Run in the forked process: serve, and tell the parent so, and why it ends."""
        os.setsid()  # the terminal sends Ctrl-C to the parent alone
        os.close(self._pipe_write)
        try:
            failure = serve(self._settings, self._slot, on_serving=lambda: sender.send(_SERVES))
        except StoplogError as exc:
            sender.send(exc)
        else:
            if failure is not None:
                sender.send(failure)
