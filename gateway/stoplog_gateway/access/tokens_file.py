"""The tokens file: one token a line, with its name, its scopes, its digest and the date of its creation.

::

    # name   scopes       SHA-256 of the token       created
    ops      admin        sha256:0f8c…               2026-11-30
    shop     check,read   sha256:77ab…               2026-11-30

Blank lines and lines that start with ``#`` are ignored. The file contains no secret: a token cannot be
computed from its digest.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

from stoplog.errors import SettingsError, StoplogError
from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.access.tokens import Token, digest_of, new_token

MAX_BYTES: Final = 1 << 20
"""Maximum size of the file: more than 8,000 tokens."""

_HEAD: Final = "# name scopes digest created; written by `stoplog tokens`\n"
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9._@-]{0,63}")
_RESERVED: Final = ("kafka", "local", "sdk")
"""Authors in the audit that are no tokens."""

_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d")


class TokensFileError(SettingsError):
    """The tokens file cannot be used. The text names the file, the line and the remedy."""


class TokenNameError(StoplogError):
    """A token cannot be added or revoked under this name."""


def parse_tokens(content: bytes, path: Path) -> list[Token]:
    """Return the tokens in the *content* of the file *path*.

    Raises:
        TokensFileError: A line is invalid.
    """
    if len(content) > MAX_BYTES:
        raise TokensFileError(f"{path}: larger than {MAX_BYTES >> 20} MiB: revoke tokens that nobody uses")
    found: dict[str, Token] = {}
    digests: set[bytes] = set()
    for number, line in enumerate(content.split(b"\n"), 1):
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        try:
            token = _parse([word.decode() for word in words])
            if token.name in found:
                raise ValueError(f"the name {token.name} occurs twice: give each token a name of its own")
            if token.digest in digests:
                raise ValueError("the same digest occurs twice: remove one of the two lines")
        except ValueError as exc:  # a UnicodeDecodeError is one, too
            raise TokensFileError(f"{path}, line {number}: {exc}") from None
        found[token.name] = token
        digests.add(token.digest)
    return list(found.values())


def _parse(words: list[str]) -> Token:
    if not 3 <= len(words) <= 4:
        raise ValueError("not `name scopes sha256:digest [date]`: write lines with `stoplog tokens add`")
    name, scopes, digest = words[:3]
    created = words[3] if len(words) == 4 else ""
    matched = _DIGEST.fullmatch(digest)
    if matched is None:
        # The word may be the token itself, so the message does not repeat it.
        raise ValueError("the third word is no sha256:<64 hex digits>: write lines with `stoplog tokens add`")
    if created and _DATE.fullmatch(created) is None:
        raise ValueError("the fourth word is no date such as 2026-11-30: correct or remove it")
    return Token(check_name(name), parse_scopes(scopes.split(",")), bytes.fromhex(matched[1]), created)


def check_name(name: str) -> str:
    """Return *name* if it is one for a token.

    Raises:
        ValueError: It is none.
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name[:80]!a} is no name: use 1 to 64 letters, digits and . _ @ -, a letter first")
    if name in _RESERVED:
        raise ValueError(f"{name} has a meaning of its own in the audit: use another name")
    return name


def parse_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """Return the scopes with these *names*.

    Raises:
        ValueError: A name is unknown, or there is none.
    """
    try:
        return frozenset(Scope(name) for name in names)
    except ValueError:
        raise ValueError(f"unknown scope: use {', '.join(Scope)}, with commas between several") from None


def read_tokens(path: Path) -> list[Token]:
    """Return the tokens in the file *path*.

    Raises:
        TokensFileError: The file cannot be read, or a line is invalid.
    """
    return parse_tokens(read_file(path), path)


def read_file(path: Path) -> bytes:
    """Return the content of the tokens file *path*.

    Raises:
        TokensFileError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise TokensFileError(
            f"{path}: cannot be read ({exc.strerror}): create it with `stoplog tokens add`, or correct "
            f"STOPLOG_TOKENS_FILE"
        ) from exc


def add_token(path: Path, name: str, scopes: frozenset[Scope]) -> str:
    """Add a token to the file *path*, which is created if it does not exist, and return the token's text.

    Raises:
        TokenNameError: The name is invalid or taken.
        TokensFileError: The file cannot be read or written, or a line of it is invalid.
    """
    try:
        check_name(name)
    except ValueError as exc:
        raise TokenNameError(str(exc)) from None
    with _changing(path) as lines:
        if _index_of(lines, name) is not None:
            raise TokenNameError(f"{path} has a token named {name}: revoke that one, or use another name")
        text = new_token()
        listed = ",".join(scope for scope in Scope if scope in scopes)
        digest = digest_of(text.encode()).hex()
        lines.append(f"{name} {listed} sha256:{digest} {datetime.now(UTC).date()}\n".encode())
    return text


def revoke_token(path: Path, name: str) -> None:
    """Remove the token *name* from the file *path*.

    Raises:
        TokenNameError: There is no such token.
        TokensFileError: The file cannot be read or written, or a line of it is invalid.
    """
    with _changing(path, create=False) as lines:
        index = _index_of(lines, name)
        if index is None:
            raise TokenNameError(f"{path} has no token named {name}: see `stoplog tokens list`")
        del lines[index]


def _index_of(lines: list[bytes], name: str) -> int | None:
    for index, line in enumerate(lines):
        if line.split()[:1] == [name.encode()]:
            return index
    return None


@contextmanager
def _changing(path: Path, *, create: bool = True) -> Iterator[list[bytes]]:
    """Let the block change the lines of *path*, then replace the file as a whole."""
    path = path.resolve()  # a link stays one
    try:
        if create:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(path.parent):
            old = read_file(path) if path.exists() or not create else _HEAD.encode()
            parse_tokens(old, path)
            lines = old.splitlines(keepends=True)
            if lines and not lines[-1].endswith(b"\n"):
                lines[-1] += b"\n"
            yield lines
            _replace(path, b"".join(lines))
    except OSError as exc:
        raise TokensFileError(f"{path}: cannot be written ({exc.strerror})") from exc


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time change the files in *folder*."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes) -> None:
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if path.exists():  # a gateway that runs as another user can still read it
                shutil.copymode(path, file.name)
                with suppress(PermissionError):
                    os.chown(file.name, path.stat().st_uid, path.stat().st_gid)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
