"""Relay keys: the secrets by which workers recognize the limit updates that workers relayed.

A program that may only produce checks has no such key. So it cannot forge an update in ``checks``.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import Final

from stoplog.errors import InvalidInput

KEY_BYTES: Final = 32
"""Least length of a key: that of the digest of its MAC."""

_ENTRY: Final = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-fA-F]+)")
_REMEDY: Final = "use <id>:<key>, comma separated, with keys from `openssl rand -hex 32`"


class RelayKeys:
    """Keys by id, in the order of preference for signing. Never printed.

    Args:
        secrets: The keys.
    """

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._secrets = dict(secrets)
        self.announced = {key_id: f"{key_id}:{_fingerprint(key)}" for key_id, key in secrets.items()}
        """The announcement of each key, by its id: the id, and a digest by which workers notice that
        they know two keys under one id."""

    def secret(self, key_id: str) -> bytes | None:
        """Return the key with this id; ``None`` if it is unknown."""
        return self._secrets.get(key_id)


def parse_relay_keys(text: str) -> RelayKeys:
    """Return the keys in *text*, ``<id>:<key in hex>``, separated by commas or white space.

    Raises:
        InvalidInput: An entry is malformed, a key is too short, or an id comes twice. The error shows no key.

    >>> list(parse_relay_keys(f"2026:{'ab' * 32}, 2027:{'cd' * 32}").announced)
    ['2026', '2027']
    """
    secrets: dict[str, bytes] = {}
    for number, entry in enumerate(re.split(r"[,\s]+", text.strip(", \t\r\n")), 1):
        if not entry:
            continue
        match = _ENTRY.fullmatch(entry)
        if match is None or len(match[2]) % 2:
            raise InvalidInput("relay_keys", f"entry {number} is malformed", _REMEDY)
        key_id, key = match[1], bytes.fromhex(match[2])
        if len(key) < KEY_BYTES:
            # Without the id: if a separator is missing, the text before the colon contains a key.
            problem = f"the key of entry {number} has {len(key)} bytes; at least {KEY_BYTES} are needed"
            raise InvalidInput("relay_keys", problem, _REMEDY)
        if key_id in secrets:
            raise InvalidInput(
                "relay_keys",
                f"entry {number} has the id of an earlier entry",
                "give each key an id of its own",
            )
        secrets[key_id] = key
    return RelayKeys(secrets)


def _fingerprint(key: bytes) -> str:
    return hmac.digest(key, b"stoplog relay key", "sha256")[:4].hex()


NO_KEYS: Final = RelayKeys({})
