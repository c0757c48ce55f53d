"""A network that can be cut: a TCP proxy, and a broker behind one."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from stoplog_gateway.local.kafka_broker import Broker
from stoplog_gateway.ports import free_port


class NetworkProxy:
    """A TCP proxy on a port of its own. It can be cut, as a network partition cuts a connection.

    While it is cut, no connection is closed. Data waits, and new connections get no answer. Once it is
    healed, the data that waited is delivered, as TCP delivers it by retransmission.
    """

    def __init__(self, to_port: int) -> None:
        self.port = free_port()
        self._to_port = to_port
        self._loop = asyncio.new_event_loop()
        self._requests_pass, self._answers_pass = asyncio.Event(), asyncio.Event()
        self._requests_pass.set()
        self._answers_pass.set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._on_loop(asyncio.start_server(self._forward, "127.0.0.1", self.port))

    def _on_loop(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def cut(self) -> None:
        """Hold back everything from now on."""
        self._loop.call_soon_threadsafe(self._requests_pass.clear)
        self.cut_answers()

    def cut_answers(self) -> None:
        """Hold back the server's data from now on. The client's data still passes."""
        self._loop.call_soon_threadsafe(self._answers_pass.clear)

    def heal(self) -> None:
        """Let all data pass again."""
        for event in (self._requests_pass, self._answers_pass):
            self._loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """End all connections."""

        async def end() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.sleep(0.05)  # the transports need turns of the loop to close

        self._on_loop(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            await self._requests_pass.wait()
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
            writers.append(to_writer)
            await asyncio.gather(
                self._pump(reader, to_writer, self._requests_pass),
                self._pump(to_reader, writer, self._answers_pass),
            )
        except OSError:
            writer.close()
        except asyncio.CancelledError:
            for each in writers:
                each.transport.abort()
            raise

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await passes.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


class ProxiedBroker(Broker):
    """A broker with a second listener behind a :class:`NetworkProxy`."""

    def __init__(self, home: Path, **kwargs: Any) -> None:
        super().__init__(home, **kwargs)
        self._proxied_port = free_port()
        self.proxy = NetworkProxy(self._proxied_port)

    def _write_properties(self) -> Path:
        path = super()._write_properties()
        host = "127.0.0.1"
        with path.open("a") as file:
            file.write(
                f"\nlisteners=BROKER://{host}:{self.port},CONTROLLER://{host}:{self._controller_port},"
                f"PROXIED://{host}:{self._proxied_port}"
                f"\nadvertised.listeners=BROKER://{host}:{self.port},PROXIED://{host}:{self.proxy.port}"
                f"\nlistener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT\n"
            )
        return path
