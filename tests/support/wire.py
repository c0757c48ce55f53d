"""A network that can be cut: a proxy, and a broker behind one."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from stoplog_gateway.local.kafka_broker import Broker
from stoplog_gateway.ports import free_port


class Wire:
    """A TCP proxy on a port of its own that can drop what it carries, as a partitioned network does.

    While it is cut nothing is closed: what is sent waits, connections that are made hear nothing; once
    healed, what waited is delivered, as TCP would by sending again.
    """

    def __init__(self, to_port: int) -> None:
        self.port = free_port()
        self._to_port = to_port
        self._loop = asyncio.new_event_loop()
        self._there, self._back = asyncio.Event(), asyncio.Event()
        self._there.set()
        self._back.set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._on_loop(asyncio.start_server(self._carry, "127.0.0.1", self.port))

    def _on_loop(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def cut(self) -> None:
        """Drop everything from now on."""
        self._loop.call_soon_threadsafe(self._there.clear)
        self.cut_back()

    def cut_back(self) -> None:
        """Drop what comes back from now on, and carry what is sent there."""
        self._loop.call_soon_threadsafe(self._back.clear)

    def heal(self) -> None:
        """Carry again."""
        for event in (self._there, self._back):
            self._loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """End all connections."""

        async def end() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0.05)  # the transports close in turns of the loop

        self._on_loop(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            await self._there.wait()
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
            ends.append(to_writer)
            await asyncio.gather(
                self._pump(reader, to_writer, self._there), self._pump(to_reader, writer, self._back)
            )
        except OSError:
            writer.close()
        except asyncio.CancelledError:
            for end in ends:
                end.transport.abort()
            raise

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, whole: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await whole.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


class Wired(Broker):
    """A broker that has a second listener behind a :class:`Wire`."""

    def __init__(self, home: Path, **kwargs: Any) -> None:
        super().__init__(home, **kwargs)
        self._behind = free_port()
        self.wire = Wire(self._behind)

    def _write_properties(self, controller_port: int) -> Path:
        path = super()._write_properties(controller_port)
        here = "127.0.0.1"
        with path.open("a") as file:
            file.write(
                f"\nlisteners=BROKER://{here}:{self.port},CONTROLLER://{here}:{controller_port},"
                f"WIRE://{here}:{self._behind}"
                f"\nadvertised.listeners=BROKER://{here}:{self.port},WIRE://{here}:{self.wire.port}"
                f"\nlistener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,WIRE:PLAINTEXT\n"
            )
        return path
