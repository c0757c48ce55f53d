"""The answers to requests that are allowed or refused without a check: nothing is published.

The address of their client is exempt or blocked, or nothing names their client.
"""

from __future__ import annotations

from typing import Final

from stoplog.client.answer import Answer
from stoplog.client.metrics import Metrics
from stoplog.identity.identity import Verdict

BLOCKED: Final = "blocked"
"""Reason of the answer to a request whose address is blocked."""

NO_CLIENT: Final = "no_client"
"""Reason of the answer to a request without a client, where the settings say how it is named."""

_ANSWERS: Final = {
    Verdict.EXEMPT: Answer(True, None, None, 0, 0, -1),
    Verdict.BLOCKED: Answer(False, None, None, 0, None, -1, False, BLOCKED),
    Verdict.UNNAMED: Answer(False, None, None, 0, None, -1, False, NO_CLIENT),
}


def answer_listed(verdict: Verdict, metrics: Metrics) -> Answer | None:
    """Return the answer to a request that is not counted, by *verdict*; ``None`` if it is counted.

    Those whose address is exempt or blocked are counted in *metrics*.
    """
    if verdict is Verdict.COUNTED:
        return None
    metrics.count_verdict(verdict)
    return _ANSWERS[verdict]
