"""Tokens: how they are made, and which one a caller presents."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Final, NamedTuple

from stoplog_gateway.access.scopes import Scope

PREFIX: Final = "stoplog_"
"""Begins every token, so that scanners for leaked secrets recognize it."""

_RANDOM_BYTES: Final = 32


class Token(NamedTuple):
    """An entry of the tokens file.

    Attributes:
        name: Name of the token's owner, for logs and the audit.
        scopes: Scopes that the token has.
        digest: SHA-256 of the token's text.
        created: Date of its creation, such as ``2026-11-30``; empty if it is unknown.
    """

    name: str
    scopes: frozenset[Scope]
    digest: bytes
    created: str = ""

    def permits(self, scope: Scope) -> bool:
        """Return whether the token permits requests that need *scope*."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


def new_token() -> str:
    """Return the text of a new token: 256 random bits in base64url, after :data:`PREFIX`."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest_of(text: bytes) -> bytes:
    """Return the digest of a token's text.

    One round of SHA-256 is enough: nobody can guess 256 random bits, however fast the hash is. Slow password
    hashes protect short secrets that people choose.
    """
    return sha256(text).digest()


class Tokens:
    """The tokens in force, found by the text that a caller presents.

    Args:
        entries: The tokens at the start.
    """

    def __init__(self, entries: Iterable[Token] = ()) -> None:
        self._on_change: list[Callable[[], None]] = []
        self.replace(entries)

    def find(self, text: bytes) -> Token | None:
        """Return the token with this *text*, or ``None``.

        The lookup need not take constant time. It compares digests, and a caller cannot choose the bytes of
        a digest, so its duration says nothing about the text of a stored token.
        """
        return self._by_digest.get(sha256(text).digest())

    def replace(self, entries: Iterable[Token]) -> None:
        """Put *entries* in force instead of the tokens so far."""
        self._by_digest = {entry.digest: entry for entry in entries}
        for callback in self._on_change:
            callback()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call *callback* after each :meth:`replace`: what was decided with the old tokens is void."""
        self._on_change.append(callback)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self._by_digest)
