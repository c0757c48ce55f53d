"""The answer to a denied caller: a text for people, and a 429 response."""

from __future__ import annotations

from stoplog.asgi.problem import RATE_LIMITED, problem
from stoplog.asgi.rate_limit_headers import rate_limit_headers, reset_s
from stoplog.asgi.responses import PROBLEM, Rendered, render
from stoplog.client.answer import Answer


def denial_text(answer: Answer) -> tuple[str, str | None]:
    """Return the reason of a denial, and its remedy if waiting helps.

    >>> denial_text(Answer(False, 100, 0, 60_000, 2_001, 7))
    ('the limit of 100 is used up', 'try again in 3 s')
    >>> denial_text(Answer(False, 0, 0, 0, None, 7))
    ('the cost exceeds the limit of 0', None)
    """
    if answer.retry_after_ms is None:
        return f"the cost exceeds the limit of {answer.limit}", None
    return f"the limit of {answer.limit} is used up", f"try again in {reset_s(answer)} s"


def render_denial(answer: Answer, *, legacy: bool) -> Rendered:
    """Return the 429 response to a denied request; *legacy* adds the ``X-RateLimit-*`` fields."""
    detail, remedy = denial_text(answer)
    body = problem(RATE_LIMITED, detail, None, remedy)
    return render(body, body.status, rate_limit_headers(answer, legacy=legacy), media=PROBLEM)
