"""``python -m tests.docs_settings``: write docs/configuration.md from the settings classes.

The text of each setting is its ``Field(description=...)``. A test fails if the page is not current.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from annotated_types import Ge, Le
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings
from stoplog_gateway.cli.http_client import DEFAULT_URL
from stoplog_gateway.settings import GatewaySettings
from stoplog_worker.settings import Settings as WorkerSettings

from stoplog.client.settings import Settings
from tests.support.broker import CHECKOUT

PAGE: Final = CHECKOUT / "docs" / "configuration.md"

_HEAD: Final = """\
# Configuration

<!-- written by `python -m tests.docs_settings` from the settings classes; do not edit -->

Every setting is an environment variable. A process reads its settings once, when it starts. An
empty variable counts as unset. Programs that use the [Python SDK](python-sdk.md#settings) can pass
the settings of the SDK by name, such as `Limiter("127.0.0.1:9092", deadline_ms=50)`.

[Operations](operations.md) explains how to choose values.
"""

_COMMAND: Final = """\
## Command line

| variable | default | range | meaning |
| :-- | :-- | :-- | :-- |
| `STOPLOG_URL` | `{url}` | | Gateway that `check`, `limits`, `reset`, `status`, `watch` and `bench` call. |
| `STOPLOG_TOKEN` | unset | | Token that these commands send. |
| `STOPLOG_TOKEN_FILE` | unset | | File with that token. Unset: the token of `stoplog up`. |
| `STOPLOG_CA_FILE` | unset | | CA certificates to check the gateway's with. Unset: those of the system. |
| `STOPLOG_CLIENT_CERT_FILE` | unset | | Client certificate, for a gateway that requires one. |
| `STOPLOG_CLIENT_KEY_FILE` | unset | | Key of the client certificate. |
"""


_TITLES: Final = {
    (True, True, True): "SDK, gateway and worker",
    (True, True, False): "SDK and gateway",
    (False, True, True): "Gateway and worker",
    (False, True, False): "Gateway",
    (False, False, True): "Worker",
}
"""Headings of the page in order, by whether SDK, gateway and worker have the setting."""


class Setting(NamedTuple):
    """One row of the page."""

    name: str
    default: str
    range: str
    meaning: str


def main() -> None:
    """Write the page."""
    PAGE.write_text(page())


def page() -> str:
    """Return the page as it should be."""
    sdk, gateway = read_settings(Settings), read_settings(GatewaySettings)
    workers = read_settings(WorkerSettings)
    sections: dict[str, list[Setting]] = {title: [] for title in _TITLES.values()}
    for name, setting in (gateway | {n: it for n, it in workers.items() if n not in gateway}).items():
        sections[_TITLES[name in sdk, name in gateway, name in workers]].append(setting)
    parts = [_HEAD, *(f"## {title}\n\n{_table(rows)}\n" for title, rows in sections.items())]
    return "\n".join([*parts, _COMMAND.format(url=DEFAULT_URL)])


def read_settings(kind: type[BaseSettings]) -> dict[str, Setting]:
    """Return the settings of *kind* by field name, with the defaults that hold in an empty environment."""
    with _empty_environment():
        defaults = kind()
    return {
        name: Setting(
            f"STOPLOG_{name.upper()}", _default(getattr(defaults, name)), _range(field), _meaning(field)
        )
        for name, field in kind.model_fields.items()
    }


@contextmanager
def _empty_environment() -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("STOPLOG_")}
    try:
        yield
    finally:
        os.environ.update(kept)


def _default(value: Any) -> str:
    if isinstance(value, Path):
        return f"`{value.name}`"  # topics.yaml is shipped with the package, wherever that is
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "unset" if value in (None, "") else f"`{value}`"


def _range(field: FieldInfo) -> str:
    least = next((it.ge for it in field.metadata if isinstance(it, Ge)), None)
    most = next((it.le for it in field.metadata if isinstance(it, Le)), None)
    if least is None:
        return "" if most is None else f"up to {most:,}"
    return f"from {least:,}" if most is None else f"{least:,} to {most:,}"


def _meaning(field: FieldInfo) -> str:
    assert field.description is not None
    return field.description.replace("|", "\\|")


def _table(rows: list[Setting]) -> str:
    lines = [f"| `{row.name}` | {row.default} | {row.range} | {row.meaning} |" for row in rows]
    return "\n".join(["| variable | default | range | meaning |", "| :-- | :-- | :-- | :-- |", *lines])


if __name__ == "__main__":
    main()
