"""The answers to requests whose address is exempt or blocked. They are no checks: nothing is published."""

from __future__ import annotations

from typing import Final

from stoplog.client.answer import Answer
from stoplog.client.metrics import Metrics
from stoplog.identity.identity import Verdict

BLOCKED: Final = "blocked"
"""Reason of the answer to a request whose address is blocked."""

_ANSWERS: Final = {
    Verdict.EXEMPT: Answer(True, None, None, 0, 0, -1),
    Verdict.BLOCKED: Answer(False, None, None, 0, None, -1, False, BLOCKED),
}


def answer_listed(verdict: Verdict, metrics: Metrics) -> Answer | None:
    """Count a request whose address is exempt or blocked, and return its answer.

    ``None`` if it is neither.
    """
    if verdict is Verdict.COUNTED:
        return None
    metrics.count_verdict(verdict)
    return _ANSWERS[verdict]
