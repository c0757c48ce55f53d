"""The documentation's code blocks: the tests run each one, or it is tagged and checked here."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from stoplog_gateway.cli.app import app
from stoplog_gateway.envoy.mapping import CheckTarget, load_mapping
from typer.testing import CliRunner

import stoplog
from stoplog.wire.checks import SingleCheck, decode_checks_record
from stoplog.wire.replies import Decision
from tests.support.broker import CHECKOUT
from tests.support.docs import COMMANDS, Block, all_blocks, blocks

TAGGED: Final = [
    # page, tag, number of blocks: what is listed here is not run as it stands.
    ("README.md", "app", 1),  # a fragment, run within an application
    ("README.md", "checkout", 2),  # installs, or runs all tests
    ("docs/benchmarks.md", "checkout", 1),  # half an hour
    ("docs/client-identity.md", "app", 1),
    ("docs/kafka.md", "cluster", 5),
    ("docs/operations.md", "cluster", 4),
    ("docs/operations.md", "docker", 1),
    ("docs/python-sdk.md", "checkout", 1),
    ("docs/python-sdk.md", "fragment", 1),  # defines something, and is executed here
    ("docs/runbook.md", "cluster", 1),
    ("docs/security.md", "cluster", 3),
    ("docs/web-apps.md", "app", 6),
    ("docs/web-apps.md", "fragment", 2),
]


RUNNABLE: Final = ("stoplog", "curl", "uvicorn")
"""Programs that tests/e2e/documented/ may start."""


def tagged(*tags: str) -> list[Block]:
    return [block for block in all_blocks() if block.tag in tags]


def commands_of(tag: str) -> list[str]:
    return [line.split("   #")[0].strip() for block in tagged(tag) for line in block.lines()]


def test_only_the_listed_blocks_are_tagged() -> None:
    found = [(block.page, block.tag) for block in all_blocks() if block.tag]
    assert sorted((*it, found.count(it)) for it in set(found)) == TAGGED


def test_fragments_define_what_they_show() -> None:
    for block in tagged("fragment"):
        exec(block.text, {"__name__": block.id})


def test_block_without_a_tag_runs_only_programs_that_the_tests_expect() -> None:
    for block in all_blocks():
        for line in block.lines() if block.language == "sh" and not block.tag else ():
            words = [word for word in line.split() if "=" not in word]
            assert words[0] in RUNNABLE or words[0].startswith("examples/"), (
                f"{block.id}: tag it, or add {words[0]}"
            )


def test_tag_is_recognized_only_directly_before_its_block(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- needs: docker -->\n```sh\na\n```\n<!-- needs: docker -->\n\n```sh\nb \\\n  c\n```\n"
    )
    first, second = blocks(page)
    assert (first.tag, first.line, first.lines()) == ("docker", 1, ["a"])
    assert (second.tag, second.line, second.lines()) == ("", 7, ["b    c"])


def test_every_fence_is_read_as_a_block() -> None:
    for page in {block.page for block in all_blocks()}:
        text = (CHECKOUT / page).read_text()
        found = [block for block in all_blocks() if block.page == page]
        assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(found), page


def test_blocks_are_of_known_languages() -> None:
    assert {block.language for block in all_blocks()} <= COMMANDS | {"", "json", "yaml", "text"}


def is_known(command: str) -> bool:
    """Return whether `stoplog` knows this command and its options; nothing is run."""
    words = shlex.split(command, comments=True)
    while "=" in words[0]:
        words.pop(0)
    return CliRunner().invoke(app, [*words[1:], "--help"]).exit_code == 0


def stoplog_commands() -> Iterator[str]:
    for block in all_blocks():
        if block.language == "sh":
            for line in block.lines():
                if re.match(r"([A-Z_]+=\S+ )*stoplog ", line):
                    yield line


def test_every_stoplog_command_has_options_that_exist() -> None:
    commands = list(stoplog_commands())
    assert len(commands) > 20
    for command in commands:
        assert is_known(command), command


@pytest.mark.parametrize("command", ["stoplog nothing", "stoplog up --nothing", "A=b stoplog limits nothing"])
def test_stoplog_command_that_does_not_exist_is_found(command: str) -> None:
    assert not is_known(command)


def test_commands_for_docker_name_files_that_are_there() -> None:
    for command in commands_of("docker"):
        files = re.findall(r"--file (\S+)", command)
        assert files, command
        for file in files:
            assert "services" in yaml.safe_load((CHECKOUT / file).read_text())


def test_commands_for_a_cluster_name_settings_that_exist() -> None:
    known = set(re.findall(r"`(STOPLOG_\w+)`", (CHECKOUT / "docs" / "configuration.md").read_text()))
    for command in commands_of("cluster"):
        assert set(re.findall(r"\b(STOPLOG_\w+)=", command)) <= known, command


def test_commands_for_a_checkout_name_targets_and_extras_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in commands_of("checkout"):
        program, *arguments = shlex.split(command, comments=True)
        match program:
            case "make":
                assert set(arguments) <= targets, command
            case "pip":
                wanted = {
                    extra
                    for it in arguments
                    for found in re.findall(r"\[(.*)]", it)
                    for extra in found.split(",")
                }
                assert wanted <= extras.keys(), command
            case _:
                assert program == "stoplog"


def test_json_and_yaml_blocks_are_valid(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {"json": json.loads, "yaml": yaml.safe_load}
    for block in all_blocks():
        if block.language in kinds:
            assert kinds[block.language](block.text), block.id


def test_mapping_shown_for_envoy_is_accepted(tmp_path: Path) -> None:
    shown = [it for it in all_blocks() if it.page == "docs/envoy.md" and it.language == "yaml"]
    plans, after, closed = (tmp_path / f"{name}.yaml" for name in ("plans", "after", "closed"))
    mappings = [block for block in shown if block.text.startswith("edge:")]
    assert len(shown) - len(mappings) == 1  # for Envoy: tests/e2e/proxies/test_envoy.py runs it
    for file, block in zip((plans, after, closed), mappings, strict=True):
        file.write_text(block.text)
    target = load_mapping(after).resolve("edge", [("remote_address", "a"), ("spent", "bytes")])
    assert target == CheckTarget("a", after_response=True)
    target = load_mapping(plans).resolve("edge", [("api_key", "k"), ("tier", "gold"), ("path", "/")])
    assert target == CheckTarget("k", "gold", "/")
    target = load_mapping(closed).resolve("edge", [("remote_address", "a"), ("path", "/login")])
    assert target == CheckTarget("a", "", "path=/login", "deny")
    assert load_mapping(closed).resolve("edge", [("remote_address", "a")]) == CheckTarget("a")


def test_check_shown_for_producers_is_accepted() -> None:
    block = next(it for it in all_blocks() if it.page == "docs/kafka-producers.md" and it.language == "json")
    assert isinstance(decode_checks_record(block.text.strip().encode()), SingleCheck)


def test_calls_that_the_page_on_the_sdk_lists_exist() -> None:
    page = (CHECKOUT / "docs" / "python-sdk.md").read_text()
    rows = [line for line in page.splitlines() if re.match(r"\| `\w+\(", line)]
    names = [name for row in rows for name in re.findall(r"`(\w+)\(", row)]
    assert len(names) > 10
    for kind in (stoplog.Limiter, stoplog.BlockingLimiter):
        assert [name for name in names if not callable(getattr(kind, name, None))] == []


def test_reply_shown_to_producers_has_the_fields_of_a_decision() -> None:
    _, block = (it for it in all_blocks() if it.page == "docs/kafka-producers.md" and it.language == "json")
    assert list(json.loads(block.text)) == ["id", *Decision.__struct_fields__]
