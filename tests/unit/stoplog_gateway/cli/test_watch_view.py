"""The view of `stoplog watch`, and the rates in it."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len
from rich.console import Console
from stoplog_gateway.cli.rates import Rates, RecentSamples
from stoplog_gateway.cli.watch_view import REJECTED_ROWS, Snapshot, view

from stoplog.client.traffic import LatencyBucket, Traffic

NOW = 1_760_000_000_000
URL = "http://127.0.0.1:8080"
RATES = Rates(1234.0, 7.5, 0.0, 0.71, 12.0)


def snapshot(items: tuple[Any, ...] = (), nodes: tuple[Any, ...] = (), **status: Any) -> Snapshot:
    """Return a state as the routes answer it."""
    normal = {"mode": "normal", "since_ms": NOW - 303_000, "why": None, "store": "ok", "store_why": None}
    known = {"degraded_partitions": [], "let_through": 0, "uncounted": 0, "partitions": 4, "nodes": nodes}
    counts = dict.fromkeys(("received", "published", "uncounted"), 0)
    traffic = {
        "at_ms": NOW, "allowed": 12_345, "rejected": 678, "degraded": 9, "in_flight": 3,
        "latency": [{"le_ms": le_ms, "checks": 9} for le_ms in (1.0, 1000.0, None)],
    }  # fmt: skip
    answers = {
        "status": {**normal, **known, **status},
        "traffic": {**counts, **traffic},
        "rejected": {"gateway": "gateway-1", "seconds": 300, "items": items},
    }
    return msgspec.convert(msgspec.json.decode(msgspec.json.encode(answers)), Snapshot, str_keys=True)


def node(id_: str, role: str, partitions: dict[int, tuple[str, int]], **more: Any) -> dict[str, Any]:
    held = {number: {"state": state, "lag": lag} for number, (state, lag) in partitions.items()}
    return {
        "id": id_, "role": role, "version": "1", "host": "h", "age_ms": 1_200, "partitions": held, **more
    }  # fmt: skip


def client(id_: str, checks: int, surplus: int = 0) -> dict[str, Any]:
    return {"client_id": id_, "checks": checks, "surplus": surplus}


def lines(*arguments: Any, **more: Any) -> list[str]:
    # Markup and emoji are on, as by default: the view must be safe without turning them off.
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(view(*arguments, **more))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().removesuffix("\n").split("\n")]


def line(shown: list[str], start: str) -> list[str]:
    """Return the words of the only line that begins with *start*."""
    (found,) = (line for line in shown if line.strip().startswith(start))
    return found.split()


def test_view_of_several_processes_shows_how_many_are_degraded() -> None:
    many = snapshot(mode="degraded", why="no reply", processes=4, degraded_processes=1)
    shown = lines(URL, many, RATES)
    assert shown[1].endswith("(5 min 3 s): 1 of 4 processes")


def test_view_of_a_normal_gateway_shows_all_parts() -> None:
    items = (
        {"client_id": "mallory", "checks": 1_500, "surplus": 0},
        {"client_id": "eve", "checks": 90, "surplus": 20},
    )
    worker = node("worker-1", "worker", {0: ("running", 5), 1: ("running", 1_000), 3: ("standby", 0)})
    shown = lines(URL, snapshot(items, (node("gateway-1", "gateway", {}), worker)), RATES)
    assert shown[0].startswith(f"stoplog watch {URL}  gateway-1  20")
    assert shown[1].startswith("NORMAL since 20")
    assert shown[1].endswith("(5 min 3 s): workers answer the checks")
    assert line(shown, "checks/s") == ["checks/s", "1,234", "7.5", "0"]
    assert line(shown, "in all") == ["in", "all", "12,345", "678", "9"]
    assert "median 0.71 ms, p99 12 ms; in flight 3" in " ".join(line(shown, "latency"))
    assert line(shown, "worker-1") == [
        "worker-1",
        "worker,",
        "lane",
        "a",
        "running",
        "0-1;",
        "standby",
        "3",
        "1,005",
        "1",
        "s",
    ]
    assert line(shown, "gateway-1") == ["gateway-1", "gateway", "-", "-", "1", "s"]
    assert line(shown, "1,500") == ["1,500", "mallory"]
    assert line(shown, "70 to 90") == ["70", "to", "90", "eve"]
    assert "in the last 5 min" in "\n".join(shown)


def test_view_of_a_degraded_gateway_shows_reason_and_checks() -> None:
    why = "no worker has partition 0, 1, 3"
    more: dict[str, Any] = {"degraded_partitions": [0, 1, 3], "let_through": 5_120, "uncounted": 7}
    shown = lines(URL, snapshot(mode="degraded", why=why, store="no_worker", store_why=why, **more), RATES)
    assert shown[1].startswith("DEGRADED since")
    assert shown[2:4] == [
        f"because {why}",
        "failing open: partitions 0-1, 3; so far 5,120 checks, 7 of them never counted",
    ]
    assert "no_worker" not in "".join(shown)  # the reason is shown already

    shown = lines(URL, snapshot(store="under_replicated", store_why="look at the brokers"), RATES)
    assert shown[2] == "store under_replicated: look at the brokers"


def test_view_of_a_node_without_heartbeats_marks_it() -> None:
    shown = lines(
        URL, snapshot(nodes=(node("worker-1", "worker", {}, age_ms=7_000), node("b", "gateway", {}))), RATES
    )
    assert line(shown, "worker-1")[-3:] == ["silent", "7", "s"]
    assert line(shown, "b ")[-2:] == ["1", "s"]


def test_view_without_an_answer_keeps_the_last_state() -> None:
    shown = lines(URL, snapshot(), RATES, error="connection refused")
    assert shown[1] == "NO ANSWER, trying again: connection refused"
    assert "NORMAL" not in "".join(shown)
    assert line(shown, "in all")[2] == "12,345"
    assert lines(URL, None, Rates(), error="[b]x") == [
        f"stoplog watch {URL}",
        "NO ANSWER, trying again: [b]x",
    ]


def test_view_without_samples_shows_no_numbers() -> None:
    shown = lines(URL, snapshot(), Rates())
    assert line(shown, "checks/s") == ["checks/s", "-", "-", "-"]
    assert "median -, p99 -" in " ".join(line(shown, "latency"))
    assert "p99 over 1.0 s" in " ".join(line(lines(URL, snapshot(), Rates(p99_ms=1000.0)), "latency"))
    assert line(shown, "none") == ["none"]
    assert line(shown, "-") == ["-", "nobody"]


@pytest.mark.parametrize(
    ("id_", "escaped"),
    [
        ("\x1b[2J\x1b]0;owned\x07", r"\x1b[2J\x1b]0;owned\x07"),
        ("a\nNORMAL\r\tb", r"a\nNORMAL\r\tb"),
        ("\x9b31m\u202eevil\u2066", r"\x9b31m\u202eevil\u2066"),
        ("[red]x[/red]:smile:", "[red]x[/red]:smile:"),
        ("zoë", "zoë"),
    ],
)  # fmt: skip
def test_view_of_ids_with_control_characters_escapes_them(id_: str, escaped: str) -> None:
    item = client(id_, 7)
    assert line(lines(URL, snapshot((item,)), RATES), "7") == ["7", *escaped.split()]

    partitions = {0: (id_, 0)}
    status = snapshot(nodes=(node(id_, id_, partitions),), why=id_, store=id_, store_why="x", mode=id_)
    text = "".join(lines(id_, status, RATES, error=None))
    assert not any(character in text for character in id_ if not character.isprintable())


@pytest.mark.parametrize("id_", ["u" * 256, "語" * 85, "e\u0301" * 85, "\x1b" * 256])
def test_view_fits_80_columns_and_with_three_nodes_24_lines(id_: str) -> None:
    items = (client(id_, 1_234_567, 34_567),) * 100
    partitions = dict.fromkeys(range(16), ("running", 999999))
    nodes = (
        node(id_, "gateway", {}),
        node(id_, "worker", partitions),
        node(id_, "worker", partitions, lane=id_),
    )
    shown = lines(URL, snapshot(items, nodes), RATES)
    assert max(map(cell_len, shown)) <= 80
    assert len(shown) <= 24
    rejected = [line for line in shown if line.startswith("1,200,000 to 1,234,567  ")]
    assert len(rejected) == REJECTED_ROWS
    assert all(line.endswith("…") for line in rejected)


def sample(at_ms: int, received: int, latency: list[LatencyBucket] | None = None, **more: int) -> Traffic:
    counts = dict.fromkeys(("allowed", "rejected", "degraded", "published", "uncounted", "in_flight"), 0)
    return Traffic(at_ms=at_ms, received=received, latency=latency or [], **(counts | more))


def test_rates_are_means_of_the_last_ten_seconds() -> None:
    recent = RecentSamples()
    assert recent.add(sample(0, 0)) == Rates()
    assert recent.add(sample(1_000, 50, allowed=40, rejected=10)).allowed_per_s == 40
    rates = recent.add(sample(11_000, 90, allowed=60, rejected=20, degraded=10))
    assert (rates.allowed_per_s, rates.rejected_per_s, rates.degraded_per_s) == (2, 1, 1)
    assert (
        recent.add(sample(41_000, 90, allowed=90)).allowed_per_s == 1
    )  # long intervals: the last two samples
    assert recent.add(sample(42_000, 5, allowed=5)) == Rates()  # restarted
    assert recent.add(sample(42_000, 5, allowed=5)) == Rates()  # at the same time


def test_latencies_are_those_between_two_samples() -> None:
    def buckets(*checks: int) -> list[LatencyBucket]:
        return [LatencyBucket(le, n) for le, n in zip((1.0, 2.0, 4.0, None), checks, strict=True)]

    recent = RecentSamples()
    recent.add(sample(0, 0, buckets(1_000, 1_000, 1_000, 1_000)))
    rates = recent.add(sample(1_000, 0, buckets(1_000, 1_100, 1_100, 1_100)))
    assert (rates.p50_ms, rates.p99_ms) == (1.5, 1.99)
    rates = recent.add(sample(2_000, 0, buckets(1_000, 1_150, 1_150, 1_300)))
    assert (rates.p50_ms, rates.p99_ms) == (2.0, 4.0)  # beyond the last bound: that bound
