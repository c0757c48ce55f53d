"""Record batches and a Produce request, built byte by byte: no client library would send such data."""

from __future__ import annotations

import gzip
import socket
import struct
import time
from collections.abc import Sequence
from typing import Final

import cramjam

GZIP: Final = 1
ZSTD: Final = 4

_POLYNOMIAL: Final = 0x82F63B78
_TIMEOUT_S: Final = 30


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ _POLYNOMIAL if byte & 1 else byte >> 1
        table.append(byte)
    return table


_TABLE: Final = _crc_table()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli), the checksum of Kafka's batches.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def varint(number: int) -> bytes:
    """Return *number* as a zigzag varint, the integers of Kafka's records."""
    number = (number << 1) ^ (number >> 63)
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def record(
    key: bytes | None, value: bytes | None, headers: Sequence[tuple[bytes, bytes]] = (), delta: int = 0
) -> bytes:
    """Return one record of a batch."""

    def sized(data: bytes | None) -> bytes:
        return varint(-1) if data is None else varint(len(data)) + data

    body = b"\0" + varint(0) + varint(delta) + sized(key) + sized(value) + varint(len(headers))
    for name, content in headers:
        body += sized(name) + sized(content)
    return varint(len(body)) + body


def batch(records: bytes, count: int = 1, codec: int = 0) -> bytes:
    """Return a batch of format 2 with *records*, which are already compressed with *codec*."""
    now = int(time.time() * 1_000)
    tail = struct.pack(">hiqqqhii", codec, count - 1, now, now, -1, -1, -1, count) + records
    return struct.pack(">qiibI", 0, len(tail) + 9, -1, 2, crc32c(tail)) + tail


def bomb(codec: int, mib: int, records: int = 1) -> bytes:
    """Return a batch of a few KiB that decompresses to *records* records of *mib* MiB of zeros."""
    inside = b"".join(record(b"a", bytes(mib * 2**20), delta=delta) for delta in range(records))
    packed = gzip.compress(inside) if codec == GZIP else bytes(cramjam.zstd.compress(inside))
    assert len(packed) < 2**20
    return batch(packed, records, codec)


def produce(bootstrap: str, topic: str, partition: int, records: bytes) -> int:
    """Send a batch to the only broker of a cluster; return Kafka's error code, 0 if it was accepted.

    Raises:
        ConnectionError: The broker closed the connection without an answer.
    """
    host, _, port = bootstrap.rpartition(":")
    name = topic.encode()
    body = struct.pack(">hhih", 0, 7, 1, -1)  # key, version, correlation, no client id
    body += struct.pack(">hhi", -1, 1, _TIMEOUT_S * 1_000)  # no transaction, acks=1, timeout
    body += (
        struct.pack(">ih", 1, len(name)) + name + struct.pack(">iii", 1, partition, len(records)) + records
    )
    with socket.create_connection((host, int(port)), _TIMEOUT_S) as connection:
        connection.sendall(struct.pack(">i", len(body)) + body)
        reply = b""
        while len(reply) < 4 or len(reply) < 4 + struct.unpack(">i", reply[:4])[0]:
            more = connection.recv(4096)
            if not more:
                raise ConnectionError("the broker closed the connection")
            reply += more
    # The error follows correlation, topics, name, partitions and index.
    (error,) = struct.unpack_from(">h", reply, 4 + 4 + 4 + 2 + len(name) + 4 + 4)
    return int(error)
