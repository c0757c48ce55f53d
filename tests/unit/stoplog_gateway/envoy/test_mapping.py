from __future__ import annotations

from pathlib import Path

import pytest
from stoplog_gateway.envoy.mapping import CheckTarget, DescriptorMapping, Rule, load_mapping

from stoplog.errors import SettingsError
from stoplog.policy import check_id

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
