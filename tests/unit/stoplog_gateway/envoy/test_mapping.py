from __future__ import annotations

from pathlib import Path

import pytest
from stoplog_gateway.envoy.mapping import CheckTarget, DescriptorMapping, Rule, load_mapping

from stoplog.client.settings import Settings
from stoplog.errors import SettingsError
from stoplog.identity.identity import Identity, Verdict
from stoplog.policy import check_id, digest_id

FILE = """\
edge:
  - client: "{api_key}"
    plan: "{tier}"
    resource: "{path}"
  - client: "anonymous {remote_address}"
"""


@pytest.fixture
def mapping(tmp_path: Path) -> DescriptorMapping:
    path = tmp_path / "envoy.yaml"
    path.write_text(FILE)
    return load_mapping(path)


def test_resolve_uses_the_first_rule_whose_entries_are_present(mapping: DescriptorMapping) -> None:
    entries = [("path", "/"), ("tier", "gold"), ("api_key", "k1"), ("remote_address", "192.0.2.1")]
    assert mapping.resolve("edge", entries) == CheckTarget("k1", "gold", "/")
    assert mapping.resolve("edge", entries[2:]) == CheckTarget("anonymous 192.0.2.1")


def test_resolve_without_a_matching_rule_takes_the_first_entry_as_the_client(
    mapping: DescriptorMapping,
) -> None:
    entries = [("user", "alice"), ("path", "/"), ("api_key", "k1")]
    expected = CheckTarget("alice", resource="path=/,api_key=k1")
    assert mapping.resolve("edge", entries) == mapping.resolve("other", entries) == expected
    assert DescriptorMapping().resolve("edge", entries[:1]) == CheckTarget("alice")


def test_resolve_takes_the_first_of_two_entries_with_one_key() -> None:
    mapping = DescriptorMapping({"edge": [Rule("{user}")]})
    assert mapping.resolve("edge", [("user", "a"), ("user", "b")]) == CheckTarget("a")


def test_resolve_tells_descriptors_that_are_sent_after_the_response() -> None:
    mapping = DescriptorMapping({"edge": [Rule("{user}", after_response="spent")], "other": [Rule("{user}")]})
    user, spent, empty = ("user", "a"), ("spent", "7"), ("", "")
    assert mapping.resolve("edge", [user, spent]) == CheckTarget("a", after_response=True)
    assert mapping.resolve("edge", [user]) == CheckTarget("a")
    assert mapping.resolve("other", [user, spent, empty]) == CheckTarget("a")


def test_resolve_does_not_expand_templates_in_entries() -> None:
    mapping = DescriptorMapping({"edge": [Rule("{a} {b}")]})
    assert mapping.resolve("edge", [("a", "{b}"), ("b", "{a}")]) == CheckTarget("{b} {a}")


@pytest.mark.parametrize("value", ["", "x" * 257, "a\nb", b"\xff"])
def test_resolve_replaces_an_invalid_id_by_its_digest(value: str | bytes) -> None:
    target = DescriptorMapping().resolve("edge", [("user", value), ("path", value)])
    assert target.client.startswith("sha256:")
    assert check_id(target.client, "client")
    assert check_id(target.resource, "resource")
    assert target == DescriptorMapping().resolve("edge", [("user", value), ("path", value)])
    assert target != DescriptorMapping().resolve("edge", [("user", "other\n"), ("path", "other\n")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("edge: [{plan: gold}]", "client"),
        ("edge: [{client: ''}]", "a client is needed"),
        ("edge: [{client: '{user'}]", "rule 1 of edge"),
        ("edge: [{client: a, resource: '{}'}]", "rule 1 of edge"),
        ("edge: [{client: a, ressource: b}]", "ressource"),
        ("edge: [{client: a, on_unavailable: never}]", "on_unavailable"),
        ("edge: [{client: a, on_unavailable: no}]", "on_unavailable"),
        ("edge: [{client: a, after_response: true}]", "after_response"),
        ("- edge", "object"),
        ("edge: [", "envoy.yaml"),
    ],
)
def test_load_mapping_of_an_invalid_file_names_the_file_and_the_fault(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "envoy.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        load_mapping(path)
    assert str(caught.value).startswith(f"STOPLOG_ENVOY_MAPPING={path}: ")


def test_load_mapping_of_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_mapping(tmp_path / "envoy.yaml")


def test_load_mapping_of_an_empty_file_returns_the_default_mapping(tmp_path: Path) -> None:
    path = tmp_path / "envoy.yaml"
    path.write_text("# nothing yet\n")
    assert load_mapping(path).resolve("edge", [("user", "alice")]) == CheckTarget("alice")


CHAIN = Identity.of(
    Settings(
        identify="header:X-Api-Key,address",
        blocked_addresses="192.0.2.0/24",
        exempt_addresses="2001:db8:9::/48",
    )
)


@pytest.mark.parametrize("key", ["remote_address", "masked_remote_address"])
@pytest.mark.parametrize(
    ("value", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("2001:DB8:0:0::1", "2001:db8::/64"),
        ("[2001:db8::2%eth0]:80", "2001:db8::/64"),
        ("2001:db8::/64", "2001:db8::/64"),
        ("2001:db8::3/128", "2001:db8::/64"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("unknown", "unknown"),
    ],
)
def test_resolve_counts_an_address_in_any_spelling_and_an_ipv6_address_by_its_prefix(
    key: str, value: str, client: str
) -> None:
    assert DescriptorMapping().resolve("edge", [(key, value)]) == CheckTarget(client)
    rules = DescriptorMapping({"edge": [Rule(f"anonymous {{{key}}}", resource="{path}")]})
    assert rules.resolve("edge", [("path", value), (key, value)]) == CheckTarget(
        f"anonymous {client}", resource=value
    )


@pytest.mark.parametrize(
    ("entries", "target"),
    [
        ([("path", "/"), ("x-api-key", "k")], CheckTarget("k", resource="path=/")),
        (
            [("remote_address", "192.0.2.1"), ("X-API-Key", "k")],
            CheckTarget("k", resource="remote_address=192.0.2.1"),
        ),
        (
            [("path", "/"), ("x-api-key", ""), ("remote_address", "::ffff:1.2.3.4")],
            CheckTarget("1.2.3.4", resource="path=/,x-api-key="),
        ),
        ([("user", "alice"), ("path", "/")], CheckTarget("alice", resource="path=/")),
        (
            [("x-api-key", ", "), ("remote_address", "1.2.3.4")],
            CheckTarget("1.2.3.4", resource="x-api-key=, "),
        ),
        ([("x-api-key", "k, k"), ("path", "/")], CheckTarget("k", resource="path=/")),
        ([("x-api-key", "192.0.2.1")], CheckTarget(digest_id(b"192.0.2.1"))),
        ([("x-api-key", b"\xff")], CheckTarget(digest_id(b"\xff"))),
    ],
)
def test_resolve_takes_the_entry_that_the_chain_names(
    entries: list[tuple[str, str]], target: CheckTarget
) -> None:
    assert DescriptorMapping(identity=CHAIN).resolve("edge", entries) == target


def test_rule_that_matches_comes_before_the_chain() -> None:
    mapping = DescriptorMapping({"edge": [Rule("{user}")]}, CHAIN)
    assert mapping.resolve("edge", [("x-api-key", "k"), ("user", "alice")]) == CheckTarget("alice")


@pytest.mark.parametrize(
    ("descriptors", "verdict"),
    [
        ([[("path", "/")], [("remote_address", "192.0.2.1")]], Verdict.BLOCKED),
        ([[("masked_remote_address", "192.0.2.0/24")]], Verdict.BLOCKED),
        ([[("remote_address", "2001:db8:9::1")], [("path", "/")]], Verdict.EXEMPT),
        ([[("remote_address", "2001:db8:9::1")], [("remote_address", "1.2.3.4")]], Verdict.COUNTED),
        ([[("remote_address", "2001:db8:9::1")], [("remote_address", "192.0.2.1")]], Verdict.BLOCKED),
        ([[("masked_remote_address", "192.0.0.0/16")]], Verdict.BLOCKED),
        ([[("masked_remote_address", "192.0.3.0/24")]], Verdict.COUNTED),
        ([[("masked_remote_address", "2001:db8:9:1::/64")]], Verdict.COUNTED),
        ([[("remote_address", "2001:db8:9::1"), ("masked_remote_address", "2001:db8::/32")]], Verdict.EXEMPT),
        ([[("remote_address", "192.0.3.1")], [("masked_remote_address", "192.0.0.0/16")]], Verdict.COUNTED),
        ([[("remote_address", "-"), ("masked_remote_address", "192.0.2.0/24")]], Verdict.BLOCKED),
        ([[("path", "/"), ("X-Api-Key", "a,b")]], Verdict.UNNAMED),
        ([[("x-api-key", "a")], [("x-api-key", "a, ,a")]], Verdict.COUNTED),
        ([[("x-api-key", b"\xff,a")]], Verdict.UNNAMED),
        ([[("x-api-key", "a,b")], [("remote_address", "192.0.2.1")]], Verdict.BLOCKED),
        ([[("x-api-key", "a,b")], [("remote_address", "2001:db8:9::1")]], Verdict.EXEMPT),
        ([[("x-other", "a,b")]], Verdict.COUNTED),
        ([[("address", "192.0.2.1")], [("remote_address", b"\xff")]], Verdict.COUNTED),
    ],
)
def test_lists_look_at_the_address_of_the_request(
    descriptors: list[list[tuple[str, str | bytes]]], verdict: Verdict
) -> None:
    assert DescriptorMapping(identity=CHAIN).verdict(descriptors) is verdict
    assert DescriptorMapping().verdict(descriptors) is Verdict.COUNTED
