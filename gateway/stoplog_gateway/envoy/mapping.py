"""Whom a descriptor means: client, plan and resource of its entries, by a small file.

::

    edge:                               # a domain; its rules, of which the first that fits is used
      - client: "{api_key}"             # fits a descriptor with an entry api_key
        plan: "{tier}"                  # ... and an entry tier
        resource: "{path}"              # ... and an entry path
      - client: "anonymous {remote_address}"

Where no rule fits, and without a file, the value of the first entry is the client and the other entries are
the resource (``path=/login,method=POST``), so that different descriptors have counters of their own.

Entries come from a caller's request, and one that had Envoy's question refused would pass Envoy unlimited. So
an id that cannot be used is replaced by a digest of itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import yaml

from stoplog.errors import SettingsError
from stoplog.policy import digest_id, usable_id

_PLACE: Final = re.compile(r"\{([^{}]+)\}")

Entries = Sequence[tuple[str | bytes, str | bytes]]
"""Keys and values of a descriptor in order; bytes are what is not UTF-8."""


class Who(NamedTuple):
    """Who spends, and on what; as :class:`~stoplog.wire.checks.Check` has it."""

    client: str
    plan: str = ""
    resource: str = ""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Templates, in which ``{key}`` stands for the value of the entry of that key."""

    client: str
    plan: str = ""
    resource: str = ""

    @property
    def templates(self) -> tuple[str, str, str]:
        """All of them."""
        return self.client, self.plan, self.resource

    def apply(self, values: dict[str, str]) -> Who | None:
        """Whom it makes of these entries; ``None`` if it needs one that is not there."""
        try:
            return Who(*(_PLACE.sub(lambda match: values[match[1]], it) for it in self.templates))
        except KeyError:
            return None


class Mapping:
    """What becomes of descriptors, by the rules of each domain.

    >>> mapping = Mapping({"edge": [Rule("{user}", resource="{path}"), Rule("ip {remote_address}")]})
    >>> mapping.who("edge", [("path", "/"), ("user", "alice")])
    Who(client='alice', plan='', resource='/')
    >>> mapping.who("edge", [("remote_address", "192.0.2.1")])
    Who(client='ip 192.0.2.1', plan='', resource='')
    >>> mapping.who("other", [("user", "alice"), ("path", "/"), ("method", "GET")])
    Who(client='alice', plan='', resource='path=/,method=GET')
    """

    def __init__(self, domains: dict[str, list[Rule]] | None = None) -> None:
        self._domains = domains or {}

    def who(self, domain: str | bytes, entries: Entries) -> Who:
        """Whom *entries*, one at least, of *domain* mean; of a key that comes twice the first counts."""
        texts = [(_text(key), _text(value)) for key, value in entries]
        values = dict(reversed(texts))
        for rule in self._domains.get(_text(domain), ()):
            if (who := rule.apply(values)) is not None:
                return Who(
                    usable_id(who.client),
                    who.plan and usable_id(who.plan),
                    who.resource and usable_id(who.resource),
                )
        (_, client), *others = texts
        resource = ",".join(f"{key}={value}" for key, value in others)
        return Who(usable_id(client), resource=resource and usable_id(resource))


def load_mapping(path: Path | None) -> Mapping:
    """Read the file; without one everything is mapped as by default.

    Raises:
        SettingsError: it cannot be read, or is none.
    """
    if path is None:
        return Mapping()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        domains = msgspec.convert(content or {}, dict[str, list[Rule]])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as exc:
        raise SettingsError(f"STOPLOG_ENVOY_MAPPING={path}: {exc}; README shows one") from exc
    for domain, rules in domains.items():
        for number, rule in enumerate(rules, 1):
            if not rule.client or any(re.search("[{}]", _PLACE.sub("", it)) for it in rule.templates):
                raise SettingsError(
                    f"STOPLOG_ENVOY_MAPPING={path}: rule {number} of {domain}: a client is needed, and "
                    f"each {{ must begin a {{key}}; README shows one"
                )
    return Mapping(domains)


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else digest_id(value)
