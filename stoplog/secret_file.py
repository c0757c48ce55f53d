"""Read a secret from the file that a setting names."""

from __future__ import annotations

from pathlib import Path

from stoplog.errors import SettingsError


def read_secret(file: Path, variable: str) -> str:
    """Return the text of *file*, without the end of its last line, which editors add.

    Args:
        file: The file.
        variable: The setting that names the file, for the error.

    Raises:
        SettingsError: The file cannot be read, is not UTF-8 or is empty.
    """
    try:
        secret = file.read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise SettingsError(
            f"{variable}={file} cannot be read ({reason}): set the path of a file with the secret, which "
            f"this process may read"
        ) from None
    if not secret:
        raise SettingsError(f"{variable}={file} is empty: write the secret into it")
    return secret
