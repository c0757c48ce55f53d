"""`stoplog gateway --processes N`: N gateways on one port, forked from one parent that keeps them running.

Each has a listening socket of its own on the shared port, from when it can answer to its end: the kernel
spreads new connections over those that listen, so none waits for a process that is dead or about to start.
The parent has no thread, connection or event loop when it forks, which is what makes forking sound, and
starting again cheap.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import secrets
import signal
import sys
import time
from contextlib import ExitStack
from math import inf
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from stoplog.client.settings import Settings
from stoplog.errors import SettingsError, StoplogError
from stoplog_gateway.envoy import claimed_for_envoy
from stoplog_gateway.ports import claimed, free_port
from stoplog_gateway.server.process_slot import Peer
from stoplog_gateway.server.restart_backoff import Backoff
from stoplog_gateway.server.server import serve

log: Final = logging.getLogger(__name__)

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_MAX_WAIT_S: Final = 3600.0

_fork: Final = multiprocessing.get_context("fork")


def serve_forked(settings: Settings) -> None:
    """Serve with ``settings.processes`` processes until SIGINT, SIGTERM or SIGHUP; a second one kills them.

    What ends by itself is started again, unless an error says that it would end the same way.

    Raises:
        SettingsError: not on this system, or it lacks a folder for temporary files.
        CannotListen: the port or the address cannot be used.
        TopicError: topics.yaml cannot be read, or the broker's topics contradict it.
    """
    if sys.platform != "linux":
        raise SettingsError(
            f"STOPLOG_PROCESSES={settings.processes}: only Linux shares a port evenly; start several gateways "
            f"on ports of their own"
        )
    settings = settings.model_copy(update={"port": settings.port or free_port()})
    with ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="stoplog-gateway-")))
        except OSError as exc:
            raise SettingsError(
                f"no folder for metrics can be made ({exc}): set TMPDIR to a writable one"
            ) from exc
        for sock in claimed(settings.port, settings.host):
            stack.enter_context(sock)
        if settings.envoy is not None:
            for sock in claimed_for_envoy(settings.envoy):
                stack.enter_context(sock)
        watched = _watched()
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)  # they wait for sigtimedwait
        lifeline = os.pipe()
        first_slot = secrets.randbits(32)
        places = [
            _Place(settings, Peer(number, first_slot + number, folder, lifeline[0]), lifeline[1])
            for number in range(1, settings.processes + 1)
        ]
        stack.callback(_stop, places, watched, settings.stop_s)
        _keep_running(places, watched)


def _watched() -> list[signal.Signals]:
    """Signals that matter here; not what was ignored at the start (`nohup`, `&`): blocked, it would come."""
    ending = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    return [*ending, signal.SIGCHLD]


def _keep_running(places: list[_Place], watched: list[signal.Signals]) -> None:
    """Until a signal."""
    while True:
        for place in places:
            place.tend()
        due = min(place.due for place in places) - time.monotonic()
        got = signal.sigtimedwait(watched, min(max(due, 0.0), _MAX_WAIT_S))
        if got is not None and got.si_signo in _ENDING:
            return


def _stop(places: list[_Place], watched: list[signal.Signals], stop_s: float) -> None:
    until = time.monotonic() + stop_s
    for place in places:
        place.terminate()
    while any(place.running for place in places):
        got = signal.sigtimedwait(watched, max(until - time.monotonic(), 0.0))
        if got is None or got.si_signo in _ENDING:
            for place in places:
                place.kill()


class _Place:
    """One of the processes, and those started in its place when it ends.

    Args:
        settings: Of all.
        peer: Its own.
        lifeline: The parent's end of the pipe of ``peer.parent``.
    """

    def __init__(self, settings: Settings, peer: Peer, lifeline: int) -> None:
        name = settings.node_id and f"{settings.node_id}-{peer.place}"
        self._settings = settings.model_copy(update={"node_id": name})
        self._peer = peer
        self._lifeline = lifeline
        self._backoff = Backoff()
        self._process: ForkProcess | None = None
        self.due = 0.0
        """When to start it, by the monotonic clock; infinite while it runs."""

    @property
    def running(self) -> bool:
        """Whether it runs now."""
        return self._process is not None and self._process.is_alive()

    def tend(self) -> None:
        """Start it if that is due; take note of its end.

        Raises:
            StoplogError: what it ended of, and would again.
        """
        if self._process is not None and not self._process.is_alive():
            self._ended(self._process)
        if time.monotonic() >= self.due:
            self._start()

    def terminate(self) -> None:
        """Ask it to stop."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()

    def _start(self) -> None:
        self._words, words = _fork.Pipe(duplex=False)
        self._process = _fork.Process(target=self._serve, args=(words,))
        self._process.start()
        words.close()
        self._backoff.started()
        self.due = inf

    def _ended(self, process: ForkProcess) -> None:
        with self._words:
            try:
                why: StoplogError | str = self._words.recv()
            except EOFError:
                why = f"status {process.exitcode}"
        self._process = None
        process.close()
        self._peer.ended()
        if isinstance(why, StoplogError):
            raise why
        delay = self._backoff.delay()
        self.due = time.monotonic() + delay
        log.warning("process %d ended (%s); starting it again in %.1f s", self._peer.place, why, delay)

    def _serve(self, words: Connection) -> None:
        """In the process that was forked."""
        os.setsid()  # Ctrl-C in the terminal reaches the parent alone
        os.close(self._lifeline)
        try:
            failure = serve(self._settings, self._peer)
        except StoplogError as exc:
            words.send(exc)
        else:
            if failure is not None:
                words.send(failure)
