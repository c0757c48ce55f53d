"""Map the descriptors of Envoy's rate limit requests to client, plan and resource, by a YAML file.

::

    edge:                               # a domain and its rules; the first matching rule applies
      - client: "{api_key}"             # matches a descriptor with an entry api_key
        plan: "{tier}"                  # ... and an entry tier
        resource: "{path}"              # ... and an entry path
      - client: "anonymous {remote_address}"
        on_unavailable: deny            # fails closed; the default is allow
        after_response: spent           # a descriptor with an entry spent is sent after the response

If no rule matches, or without a file, the chain of ``STOPLOG_IDENTIFY`` names the client, if an entry has the
key of one of its links: the name of a header field in any case, or one of :data:`ADDRESS_KEYS`. Otherwise,
the value of the first entry is the client. The other entries form the resource (``path=/login,method=POST``),
so that different descriptors have separate counters.

The values of :data:`ADDRESS_KEYS` are replaced by the id of the address (:mod:`stoplog.identity.addresses`).

If a header field of the chain has several values, or an address is blocked, the request is refused
(:meth:`DescriptorMapping.verdict`).

Entries come from API callers' requests. Envoy allows traffic whose rate limit request fails, so an invalid
value must not be an error: an invalid id is replaced by its SHA-256 digest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import yaml

from stoplog.client.fail_open import DENY, OnUnavailable
from stoplog.errors import SettingsError
from stoplog.identity.addresses import Network, network_id, parse_address, parse_network
from stoplog.identity.header_text import SeveralValues, values_id
from stoplog.identity.identity import Identity, Verdict
from stoplog.policy import digest_id, usable_id

_PLACEHOLDER: Final = re.compile(r"\{([^{}]+)\}")

REMOTE_ADDRESS: Final = "remote_address"
MASKED_REMOTE_ADDRESS: Final = "masked_remote_address"
ADDRESS_KEYS: Final = (REMOTE_ADDRESS, MASKED_REMOTE_ADDRESS)
"""Keys of the entries with which Envoy's actions of these names tell the address of a client."""

MAX_READ_IN_OVERLOAD: Final = 4 << 10
"""Maximum bytes of a request whose descriptors are mapped in overload, in about a millisecond."""

Entries = Sequence[tuple[str | bytes, str | bytes]]
"""Keys and values of a descriptor, in order. A value that is not UTF-8 is bytes."""


class CheckTarget(NamedTuple):
    """Client, plan and resource, as in :class:`~stoplog.wire.checks.Check`, and what its rule says.

    Attributes:
        client: The client.
        plan: The plan; empty for none.
        resource: The resource; empty for none.
        on_unavailable: ``deny`` if it fails closed.
        after_response: The descriptor was sent after the response, so its cost is charged in any case.
    """

    client: str
    plan: str = ""
    resource: str = ""
    on_unavailable: OnUnavailable = "allow"
    after_response: bool = False


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Templates in which ``{key}`` stands for the value of the entry with that key.

    ``after_response`` is the key of an entry that only descriptors with ``apply_on_stream_done`` have.
    Nothing else in a request tells when Envoy sends it.
    """

    client: str
    plan: str = ""
    resource: str = ""
    on_unavailable: OnUnavailable = "allow"
    after_response: str = ""

    @property
    def templates(self) -> tuple[str, str, str]:
        """The templates of client, plan and resource."""
        return self.client, self.plan, self.resource

    def apply(self, values: dict[str, str]) -> CheckTarget | None:
        """Fill the templates with *values*; return ``None`` if an entry is missing."""
        try:
            client, plan, resource = (
                _PLACEHOLDER.sub(lambda match: values[match[1]], template) for template in self.templates
            )
        except KeyError:
            return None
        after_response = bool(self.after_response) and self.after_response in values
        return CheckTarget(client, plan, resource, self.on_unavailable, after_response)


class DescriptorMapping:
    """Map descriptors by the rules of their domain.

    Args:
        domains: Rules by domain.
        identity: The settings of client identity; by default, those of an empty environment.

    >>> rules = [Rule("{user}", resource="{path}"), Rule("{address}", on_unavailable="deny")]
    >>> mapping = DescriptorMapping({"edge": rules})
    >>> mapping.resolve("edge", [("path", "/"), ("user", "alice")])
    CheckTarget(client='alice', plan='', resource='/', on_unavailable='allow', after_response=False)
    >>> mapping.resolve("edge", [("address", "192.0.2.1")])
    CheckTarget(client='192.0.2.1', plan='', resource='', on_unavailable='deny', after_response=False)
    >>> mapping.resolve("other", [("user", "alice"), ("path", "/"), ("method", "GET")]).resource
    'path=/,method=GET'
    """

    def __init__(
        self, domains: dict[str, list[Rule]] | None = None, identity: Identity | None = None
    ) -> None:
        self._domains = domains or {}
        self._identity = identity or Identity()
        self._links = [None if link is None else link.decode() for link in self._identity.chain.links]
        self._fields = {link for link in self._links if link is not None}

    def resolve(self, domain: str | bytes, entries: Entries) -> CheckTarget:
        """Return the target of a descriptor.

        Args:
            domain: Domain of the request.
            entries: At least one entry. The first of entries with the same key counts.
        """
        texts = [(_text(key), _text(value)) for key, value in entries]
        for index, (key, value) in enumerate(texts):
            if key in ADDRESS_KEYS:
                texts[index] = key, network_id(value, self._identity.ipv6_prefix) or value
        rules = self._domains.get(_text(domain), ())
        values = dict(reversed(texts)) if rules else {}
        for rule in rules:
            if (target := rule.apply(values)) is not None:
                return CheckTarget(
                    usable_id(target.client),
                    target.plan and usable_id(target.plan),
                    target.resource and usable_id(target.resource),
                    target.on_unavailable,
                    target.after_response,
                )
        index, client = self._client_of(entries, texts) if self._links else (0, texts[0][1])
        del texts[index]
        resource = ",".join(f"{key}={value}" for key, value in texts)
        return CheckTarget(usable_id(client), resource=resource and usable_id(resource))

    def _client_of(self, entries: Entries, texts: Sequence[tuple[str, str]]) -> tuple[int, str]:
        """Return the index of the entry that names the client, and the client."""
        client: str | None
        for link in self._links:
            for index, (key, text) in enumerate(texts):
                if link is None:
                    client = text if key.lower() in ADDRESS_KEYS else ""
                else:
                    client = _id_in(entries[index][1], key) if key.lower() == link else ""
                if client:
                    return index, client
        return 0, texts[0][1]

    def verdict(self, descriptors: Iterable[Entries]) -> Verdict:
        """Return how a request is treated, by its addresses and by the name of its client.

        Args:
            descriptors: The entries of each of its descriptors.
        """
        if not self._identity.has_lists and not self._fields:
            return Verdict.COUNTED
        descriptors = list(descriptors)
        verdict = self._verdict_of_lists(descriptors)
        if verdict is Verdict.COUNTED and any(
            key in self._fields and _id_in(value, key) is None
            for entries in descriptors
            for key, value in ((_text(key).lower(), value) for key, value in entries)
        ):
            return Verdict.UNNAMED
        return verdict

    def _verdict_of_lists(self, descriptors: Iterable[Entries]) -> Verdict:
        if not self._identity.has_lists:
            return Verdict.COUNTED
        values: dict[str, list[str]] = {key: [] for key in ADDRESS_KEYS}
        for entries in descriptors:
            for key, value in entries:
                if key in ADDRESS_KEYS:
                    values[_text(key)].append(_text(value))
        addresses = {one for one in map(parse_address, values[REMOTE_ADDRESS]) if one is not None}
        if addresses:
            return self._identity.verdict_of(addresses, certain=len(addresses) == 1)
        # A masked address is a network. Whether a client in it is exempt is not known.
        return self._identity.verdict_of_networks(filter(None, map(_network, values[MASKED_REMOTE_ADDRESS])))

    def fails_closed(self, domain: str | bytes) -> bool:
        """Return whether a rule of *domain* says ``on_unavailable: deny``."""
        return any(rule.on_unavailable == DENY for rule in self._domains.get(_text(domain), ()))


def load_mapping(path: Path | None, identity: Identity | None = None) -> DescriptorMapping:
    """Read the mapping file; ``None`` returns the default mapping.

    Args:
        path: Path of the file.
        identity: The settings of client identity; by default, those of an empty environment.

    Raises:
        SettingsError: The file cannot be read, or its content is invalid.
    """
    if path is None:
        return DescriptorMapping(identity=identity)
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise _invalid(path, str(exc)) from exc
    return parse_mapping(data, path, identity)


def parse_mapping(data: bytes, path: Path, identity: Identity | None = None) -> DescriptorMapping:
    """Return the mapping in the content of a mapping file; *path* is for the error text.

    Raises:
        SettingsError: The content is invalid.
    """
    try:
        domains = msgspec.convert(yaml.safe_load(data) or {}, dict[str, list[Rule]])
    except (yaml.YAMLError, ValueError) as exc:  # msgspec.ValidationError is a ValueError
        raise _invalid(path, str(exc)) from exc
    except RecursionError as exc:
        raise _invalid(path, "nested too deeply") from exc
    for domain, rules in domains.items():
        for number, rule in enumerate(rules, 1):
            if not rule.client or any(
                re.search("[{}]", _PLACEHOLDER.sub("", template)) for template in rule.templates
            ):
                raise _invalid(
                    path,
                    f"rule {number} of {domain}: a client is needed, and each {{ must start a {{key}}",
                )
    return DescriptorMapping(domains, identity)


def _invalid(path: Path, why: str) -> SettingsError:
    return SettingsError(f"STOPLOG_ENVOY_MAPPING={path}: {why}; docs/envoy.md has an example")


def _network(text: str) -> Network | None:
    try:
        return parse_network(text, strict=False)
    except ValueError:
        return None


def _id_in(value: str | bytes, key: str) -> str | None:
    """Return the id in the value of a header field; empty if it has none, ``None`` if it has several."""
    try:
        return values_id([value.encode() if isinstance(value, str) else value], key) or ""
    except SeveralValues:
        return None


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else digest_id(value)
