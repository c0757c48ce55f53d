"""Settings of relay keys that workers get, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from stoplog_worker.algorithm.relay_keys import KEY_BYTES


def rotation(keys: Sequence[str]) -> list[list[str]]:
    """Return the steps that add a key to *keys* and have it sign: lists of keys, of which the first signs.

    Each step is taken by all workers before the next one begins. Old keys are never removed, because the log
    keeps what they signed. Without *keys*, nothing is signed yet, and one step is enough.

    >>> [[id_of(key) for key in step] for step in rotation(["key-1:00"])]
    [['key-1', 'key-2'], ['key-2', 'key-1']]
    """
    number = len(keys) + 1
    new = f"key-{number}:{number.to_bytes(KEY_BYTES).hex()}"
    return [[*keys, new], [new, *keys]] if keys else [[new]]


def id_of(key: str) -> str:
    """Return the id of *key*, ``<id>:<key in hex>``."""
    return key.partition(":")[0]
