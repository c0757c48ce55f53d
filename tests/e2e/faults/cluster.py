"""Three brokers that can be hurt: a clock of their own each, and a second way to them that can be cut."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import yaml
from confluent_kafka import ElectionType, TopicPartition
from confluent_kafka.admin import AdminClient

from gateway.broker import Broker
from gateway.ports import free_port
from streams.contract.topics import CHECKS, DEFAULT_FILE, create_topics, load_topics
from tests.broker import fresh_cluster
from tests.system import eventually

NODES: Final = 3


def shifted(ahead_s: int) -> dict[str, str]:
    """Environment of a Python process whose wall clock is *ahead_s* seconds ahead."""
    return {"PYTHONPATH": str(Path(__file__).with_name("shifted")), "CLOCK_AHEAD_S": str(ahead_s)}


def _faketime(ahead_s: int) -> dict[str, str]:
    """Environment of a JVM whose wall clock is *ahead_s* seconds ahead, and whose monotonic clock is right.

    libfaketime is the Debian package ``faketime``; without it this fails.
    """
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    assert found, "libfaketime is not there: apt-get install faketime"
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME": f"{ahead_s:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # The JVM waits by the monotonic clock; the "fix" takes it for the other and lets it wait an hour.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


class Wire:
    """A TCP proxy on a port of its own that can drop all that it carries, as a partitioned network does.

    While it is cut nothing is closed: what is sent waits, connections that are made hear nothing; once
    healed, what waited is delivered, as TCP would by sending again.
    """

    def __init__(self, to_port: int) -> None:
        self.port = free_port()
        self._to_port = to_port
        self._loop = asyncio.new_event_loop()
        self._whole = asyncio.Event()
        self._whole.set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._on_loop(asyncio.start_server(self._carry, "127.0.0.1", self.port))

    def _on_loop(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def cut(self) -> None:
        """Drop everything from now on."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def heal(self) -> None:
        """Carry again."""
        self._loop.call_soon_threadsafe(self._whole.set)

    def close(self) -> None:
        """End all connections."""

        async def end() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._on_loop(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._whole.wait()
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pump(reader, to_writer), self._pump(to_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


class Node(Broker):
    """A broker with a clock that can be set, and a listener behind a :class:`Wire`."""

    def __init__(self, home: Path, **kwargs: Any) -> None:
        super().__init__(home, **kwargs)
        self._behind = free_port()
        self.wire = Wire(self._behind)
        self.ahead_s = 0
        """What its wall clock shows more than ours, from its next start on."""

    def _java(self, jars: Path) -> list[str]:
        clock = _faketime(self.ahead_s) if self.ahead_s else {}
        java, *options = super()._java(jars)
        # Compiled once and lightly: what three of them spend on compiling better is never earned back here.
        quick = ["-XX:TieredStopAtLevel=1"]
        return ["/usr/bin/env", *(f"{name}={value}" for name, value in clock.items()), java, *quick, *options]

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


class Cluster:
    """The brokers, and the topics file that has everything on all of them."""

    def __init__(self, nodes: list[Node], topics: Path) -> None:
        self.nodes = nodes
        self.topics = topics
        self.bootstrap = ",".join(node.bootstrap for node in nodes)
        self.over_wires = ",".join(f"127.0.0.1:{node.wire.port}" for node in nodes)
        self._admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def _partitions(self) -> dict[int, Any]:
        return dict(self._admin.list_topics(CHECKS, timeout=10).topics[CHECKS].partitions)

    def leader_of(self, partition: int) -> Node:
        """The node that leads *partition* of ``checks``."""
        leader: int = self._partitions()[partition].leader
        return self.nodes[leader - 1]

    def wait_in_sync(self) -> None:
        """Return when all nodes have all of ``checks``."""

        def in_sync() -> bool:
            return all(len(partition.isrs) == NODES for partition in self._partitions().values())

        eventually("all replicas in sync", in_sync)

    def elect_preferred(self) -> None:
        """Have the partitions of ``checks`` led by the nodes that led them first."""
        places = [TopicPartition(CHECKS, partition) for partition in self._partitions()]
        # Per partition: done, or that nothing had to be.
        self._admin.elect_leaders(ElectionType.PREFERRED, places).result(20)


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster with topics: replication 3, of which 2 must have a record before it counts as written."""
    topics = folder / "topics.yaml"
    shipped = yaml.safe_load(DEFAULT_FILE.read_text())
    shipped["defaults"] |= {"replication": NODES, "min_insync": NODES - 1}
    topics.write_text(yaml.safe_dump(shipped))
    with ExitStack() as stack:
        nodes = stack.enter_context(fresh_cluster(NODES, kind=Node))
        for node in nodes:
            stack.callback(node.wire.close)
        cluster = Cluster(nodes, topics)
        admin = AdminClient({"bootstrap.servers": cluster.bootstrap, "log_level": 0})
        create_topics(admin, load_topics(topics).values())
        yield cluster
