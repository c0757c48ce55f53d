"""The token of `stoplog up`: its digest is in the tokens file of the data folder, its text beside it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.access.tokens_file import TokenNameError, TokensFileError, add_token, revoke_token

TOKENS_FILE: Final = "tokens"
TOKEN_FILE: Final = "token"
"""File in the data folder with the text of the token, for the command line."""

LOCAL_NAME: Final = "stoplog-up"


def ensure_local_token(home: Path) -> Path:
    """Return the tokens file of the data folder *home*. At the first start, create it with one token.

    A token that was revoked stays so. To get a new one, delete both files.

    Raises:
        TokensFileError: A file cannot be written, or a line of the tokens file is invalid.
    """
    tokens_file, token_file = home / TOKENS_FILE, home / TOKEN_FILE
    if not token_file.exists():
        if tokens_file.exists():  # an earlier start ended before it wrote the text
            with suppress(TokenNameError):
                revoke_token(tokens_file, LOCAL_NAME)
        text = add_token(tokens_file, LOCAL_NAME, frozenset({Scope.ADMIN}))
        try:
            descriptor = os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text + "\n")
        except OSError as exc:
            raise TokensFileError(f"{token_file}: cannot be written ({exc.strerror})") from exc
    return tokens_file
