"""Workers of release 0.2.0 and of this version continue each other's states, with equal decisions.

Holds are not enabled. Both refuse records about them.
"""

from __future__ import annotations

import subprocess
from random import Random
from typing import Any

import pytest
from stoplog_worker.algorithm.fold import fault_finder, fold
from stoplog_worker.algorithm.ledger import Ledger
from stoplog_worker.algorithm.state_codec import Marker, decode_state, encode_marker
from stoplog_worker.state.store import COUNTERS
from stoplog_worker.state.store import Record as ChangelogRecord
from stoplog_worker.verify.replay import Record

from stoplog.policy import parse_policy
from stoplog.wire.checks import Batch, Check, encode_batch, encode_settlements, encode_update
from stoplog.wire.holds import LEASE, Ask, HoldRow, SettlementBatch
from stoplog.wire.limit_updates import Update
from stoplog.wire.replies import Decision
from tests.support.broker import CHECKOUT
from tests.support.memory_store import MemoryStore
from tests.support.old_release import Case, OldRelease, Outcome
from tests.support.partition_log import CLIENTS, START
from tests.support.relay import OLD, authority

DEFAULT = ["10/hour", "4/10s"]
STEPS_MS = (0, 1, 40, 1_000, 9_999, 10_167, 61_000, 3_600_000)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> OldRelease:
    shallow = subprocess.run(
        ["git", "rev-parse", "--is-shallow-repository"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    if shallow.stdout.strip() != "false":
        pytest.skip("the history of the repository is missing: git fetch --unshallow")
    return OldRelease("0.2.0", tmp_path_factory.mktemp("release"))


def a_log(random: Random, first: int, start_ms: int) -> list[Record]:
    records = []
    for offset in range(first, first + 8):
        start_ms += random.choice(STEPS_MS)
        checks = [
            Check(random.choice(CLIENTS), random.randrange(5), "", random.choice(("", "login")))
            for _ in range(3)
        ]
        rows = [HoldRow(0, Ask(LEASE, (7, 1, 0), 1, 8, 9_000))] if random.random() < 0.2 else None
        value = encode_batch(Batch(0, 7, 1, checks, rows))
        if random.random() < 0.1:
            value = encode_settlements(SettlementBatch(0, 7, 1, []))
        records.append(Record(offset, start_ms, value))
    return records


def new_fold(cases: list[Case]) -> list[Outcome]:
    """Do the same as :meth:`OldRelease.fold`, by this version."""
    outcomes = []
    for case in cases:
        store = MemoryStore()
        unreadable = [
            key
            for key, value in case.counters.items()
            if ChangelogRecord(0, key, value).entry(COUNTERS) is None
        ]
        store.write(COUNTERS, list(case.counters.items()))
        marker = Marker(0, case.clock_ms, case.clock_ms or -1, -1, "", parse_policy(case.default))
        ledger = Ledger(store, marker)
        answers = [
            [as_row(answer) for answer in fold(ledger, *record, fault_finder(0, 1)).answers]
            for record in case.records
        ]
        _, entries = ledger.take_dirty()
        outcomes.append(Outcome(unreadable, answers, dict(entries.counters)))
    return outcomes


def as_row(answer: Decision | str | None) -> Any:
    if isinstance(answer, Decision):
        return [getattr(answer, name) for name in answer.__struct_fields__]
    return answer


@pytest.mark.parametrize("upgrade", [True, False], ids=["upgrade", "downgrade"])
def test_states_of_one_release_are_continued_by_the_other(old: OldRelease, upgrade: bool) -> None:
    folds = (old.fold, new_fold) if upgrade else (new_fold, old.fold)
    firsts, whole = [], []
    for seed in range(40):
        random = Random(seed)
        records = a_log(random, 0, START)
        later = a_log(random, len(records), records[-1].timestamp_ms)
        firsts.append(Case(DEFAULT, {}, 0, records))
        whole.append(Case(DEFAULT, {}, 0, [*records, *later]))
    begun = folds[0](firsts)
    rest = folds[1](
        [
            Case(DEFAULT, outcome.counters, case.records[-1].timestamp_ms, long.records[len(case.records) :])
            for case, long, outcome in zip(firsts, whole, begun, strict=True)
        ]
    )
    expected = old.fold(whole)
    for one, other, oracle in zip(begun, rest, expected, strict=True):
        assert not other.unreadable
        assert one.answers + other.answers == oracle.answers
        for key, value in oracle.counters.items():
            found = decode_state(other.counters.get(key) or one.counters[key])
            assert {n: list(w.charges()) for n, w in found.windows.items() if n > 1} == {
                n: list(w.charges()) for n, w in decode_state(value).windows.items()
            }


def test_signed_update_is_applied_by_the_earlier_release(old: OldRelease) -> None:
    update = Update(0, "client", CLIENTS[0], "", parse_policy("1/minute"))
    signed = authority(OLD).sign(update, "old")
    asked = encode_batch(Batch(0, 7, 1, [Check(CLIENTS[0]), Check(CLIENTS[0])]))
    log = [Record(0, START, encode_update(signed)), Record(1, START, asked)]
    [outcome] = old.fold([Case(DEFAULT, {}, 0, log)])
    assert [answer[:2] for answer in outcome.answers[1]] == [[True, 1], [False, 1]]


def test_marker_after_a_signed_update_is_read_by_the_earlier_release(old: OldRelease) -> None:
    marker = Marker(17, START, START, 0, "topic", parse_policy(DEFAULT), "updates", {}, signed_from=9)
    assert old.next_offset(encode_marker(marker)) == 17
