"""The programs of old releases read the records of this one, or refuse them without harm."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoplog.policy import parse_policy
from stoplog.topics import DEFAULT_FILE
from stoplog.wire.audit import ChangeSource, source_headers
from stoplog.wire.format import ReplyTo
from stoplog.wire.limit_updates import (
    UpdateKey,
    encode_update_key,
    encode_update_value,
    order_header,
    reply_to_header,
)
from stoplog.wire.partition_count import KEY, PartitionCount, encode_partition_count
from stoplog.wire.replies import HoldsInUse, LookupReply, OpenHolds, WindowUse, encode_json_reply
from tests.support.broker import CHECKOUT

READ = """
import sys
from pathlib import Path

import msgspec

from stoplog.errors import UndecodableRecord
from stoplog.topics import load_topics
from stoplog.wire.limit_updates import decode_update
from stoplog.wire.replies import LookupReply, UpdateReply

key, value, headers, number_key, number, reply, lookup, topics = map(eval, sys.argv[1:])
update = decode_update(7, key, value, headers)
assert (update.id, update.order, update.reply_to.id) == ("alice", 9, "r"), update
try:
    decode_update(0, number_key, number, None)
except UndecodableRecord as exc:
    print("refused:", exc.reason)
assert msgspec.json.decode(reply, type=UpdateReply).applied
[window] = msgspec.json.decode(lookup, type=LookupReply).windows
assert (window.limit, window.used) == ("100/minute", 60), window
load_topics(Path(topics))
print(load_topics.__code__.co_filename)
"""


def releases() -> Iterator[tuple[str, str]]:
    for line in (CHECKOUT / "tests" / "releases.txt").read_text().splitlines():
        if not line.startswith("#"):
            version, commit = line.split()
            yield version, commit


def lookup_fields() -> dict[str, Any]:
    """Return what a worker adds to the reply to a check of cost 0, in a partition that grants holds."""
    window = WindowUse("100/minute", 60, 43_000, 45)
    reply = LookupReply("r", 41, None, [window], holds=HoldsInUse(OpenHolds(2, 40, 12_000)))
    return {name: getattr(reply, name) for name in ("policy_version", "held_to", "windows", "holds")}


@pytest.mark.parametrize(("version", "commit"), list(releases()))
def test_old_release_reads_limit_updates_and_refuses_the_number_of_partitions(
    version: str, commit: str, tmp_path: Path
) -> None:
    archive = subprocess.run(
        ["git", "archive", "--format=tar", commit, "stoplog"], cwd=CHECKOUT, capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip(f"this checkout lacks the commit of release {version}")
    subprocess.run(["tar", "-x", "-C", tmp_path], input=archive.stdout, check=True)
    headers = [
        reply_to_header(ReplyTo(0, "r")),
        *source_headers(ChangeSource("admin", "10.0.0.7", "r-1")),
        order_header(9),
    ]
    values = (
        encode_update_key(UpdateKey("client", "alice")),
        encode_update_value(parse_policy("5/minute")),
        headers,
        KEY,
        encode_partition_count(PartitionCount(4)),
        encode_json_reply(ReplyTo(0, "r"), applied=True, version=7, partition=1, existed=None),
        encode_json_reply(ReplyTo(0, "r"), **lookup_fields()),
        str(DEFAULT_FILE),
    )
    done = subprocess.run(
        [sys.executable, "-c", READ, *map(repr, values)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    refused, read_by = done.stdout.splitlines()
    assert refused == "refused: unknown kind 'partitions'; use one of client, plan, default, reset"
    assert Path(read_by).is_relative_to(tmp_path)
