from __future__ import annotations

import threading

import pytest

from tests.benchmarks.threads import check_in_threads

ORDER = {"callers": 4, "clients": 10, "distribution": "uniform", "seed": 1, "warmup_s": 0, "seconds": 0.1}


def test_threads_check_at_the_same_time_and_count_every_answer(capsys: pytest.CaptureFixture[str]) -> None:
    together = threading.Barrier(ORDER["callers"], timeout=30)  # type: ignore[arg-type]
    answered: list[str] = []
    begun = threading.local()

    def check(client: str) -> bool:
        if not hasattr(begun, "at"):
            begun.at = together.wait()
        answered.append(client)
        return True

    figures = check_in_threads(ORDER, check)
    assert capsys.readouterr().out == "begin\nend\n"
    assert 0 < figures["checks"] < len(answered)
    assert set(answered) <= {f"c{number * 625_341_585 & 0xFFFFFFFF:08x}" for number in range(10)}


def test_denied_check_of_a_thread_fails_the_load() -> None:
    with pytest.raises(RuntimeError, match="was denied"):
        check_in_threads(ORDER, lambda _: False)
