"""The answer to a denied caller: a text for people, and a response.

Its status is 429; 503 if the check failed closed; 403 if the address of the client is blocked, or
nothing names the client.
"""

from __future__ import annotations

from stoplog.asgi.problem import BLOCKED, NO_CLIENT, RATE_LIMITED, UNAVAILABLE, Kind, problem
from stoplog.asgi.rate_limit_headers import rate_limit_headers, reset_s
from stoplog.asgi.responses import PROBLEM, Rendered, render
from stoplog.client import listed
from stoplog.client.answer import Answer


def denial_text(answer: Answer) -> tuple[str, str | None]:
    """Return the reason of a denial, and its remedy if waiting helps.

    >>> denial_text(Answer(False, 100, 0, 60_000, 2_001, 7))
    ('the limit of 100 is used up', 'try again in 3 s')
    >>> denial_text(Answer(False, 0, 0, 0, None, 7))
    ('the cost exceeds the limit of 0', None)
    >>> denial_text(Answer(False, None, None, 0, 1_000, -1, True, "deadline"))
    ('the store did not decide the check (deadline)', 'try again in 1 s')
    """
    if answer.reason == listed.BLOCKED:
        return "the address of the client is blocked", None
    if answer.reason == listed.NO_CLIENT:
        return (
            "no header field names the client, or one has several values",
            "send such a field with one value",
        )
    if answer.degraded:
        return f"the store did not decide the check ({answer.reason})", f"try again in {reset_s(answer)} s"
    if answer.retry_after_ms is None:
        return f"the cost exceeds the limit of {answer.limit}", None
    return f"the limit of {answer.limit} is used up", f"try again in {reset_s(answer)} s"


def denial_kind(answer: Answer) -> Kind:
    """Return the kind of problem that a denial is."""
    if answer.reason == listed.BLOCKED:
        return BLOCKED
    if answer.reason == listed.NO_CLIENT:
        return NO_CLIENT
    return UNAVAILABLE if answer.degraded else RATE_LIMITED


def render_denial(answer: Answer, *, legacy: bool) -> Rendered:
    """Return the response to a denied request; *legacy* adds the ``X-RateLimit-*`` fields."""
    detail, remedy = denial_text(answer)
    body = problem(denial_kind(answer), detail, None, remedy)
    return render(body, body.status, rate_limit_headers(answer, legacy=legacy), media=PROBLEM)
