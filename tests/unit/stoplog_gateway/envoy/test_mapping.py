from __future__ import annotations

from pathlib import Path

import pytest
from stoplog_gateway.envoy.mapping import Mapping, Rule, Who, load_mapping

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
def mapping(tmp_path: Path) -> Mapping:
    path = tmp_path / "envoy.yaml"
    path.write_text(FILE)
    return load_mapping(path)


def test_the_first_rule_whose_entries_are_all_there_is_used(mapping: Mapping) -> None:
    entries = [("path", "/"), ("tier", "gold"), ("api_key", "k1"), ("remote_address", "192.0.2.1")]
    assert mapping.who("edge", entries) == Who("k1", "gold", "/")
    assert mapping.who("edge", entries[2:]) == Who("anonymous 192.0.2.1")


def test_where_none_fits_the_first_entry_is_the_client(mapping: Mapping) -> None:
    entries = [("user", "alice"), ("path", "/"), ("api_key", "k1")]
    expected = Who("alice", resource="path=/,api_key=k1")
    assert mapping.who("edge", entries) == mapping.who("other", entries) == expected
    assert Mapping().who("edge", entries[:1]) == Who("alice")


def test_of_a_key_that_comes_twice_the_first_counts() -> None:
    mapping = Mapping({"edge": [Rule("{user}")]})
    assert mapping.who("edge", [("user", "a"), ("user", "b")]) == Who("a")


def test_an_entry_is_no_template() -> None:
    mapping = Mapping({"edge": [Rule("{a} {b}")]})
    assert mapping.who("edge", [("a", "{b}"), ("b", "{a}")]) == Who("{b} {a}")


@pytest.mark.parametrize("value", ["", "x" * 257, "a\nb", b"\xff"])
def test_what_is_no_id_is_replaced_by_a_digest_of_its_own(value: str | bytes) -> None:
    who = Mapping().who("edge", [("user", value), ("path", value)])
    assert who.client.startswith("sha256:")
    assert check_id(who.client, "client")
    assert check_id(who.resource, "resource")
    assert who == Mapping().who("edge", [("user", value), ("path", value)])
    assert who != Mapping().who("edge", [("user", "other\n"), ("path", "other\n")])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("edge: [{plan: gold}]", "client"),
        ("edge: [{client: ''}]", "a client is needed"),
        ("edge: [{client: '{user'}]", "rule 1 of edge"),
        ("edge: [{client: a, resource: '{}'}]", "rule 1 of edge"),
        ("edge: [{client: a, ressource: b}]", "ressource"),
        ("- edge", "object"),
        ("edge: [", "envoy.yaml"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "envoy.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=why) as caught:
        load_mapping(path)
    assert str(caught.value).startswith(f"STOPLOG_ENVOY_MAPPING={path}: ")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_mapping(tmp_path / "envoy.yaml")


def test_an_empty_file_is_as_none(tmp_path: Path) -> None:
    path = tmp_path / "envoy.yaml"
    path.write_text("# nothing yet\n")
    assert load_mapping(path).who("edge", [("user", "alice")]) == Who("alice")
