"""Turn an unexpected exception, which is a bug, into one log entry and a response without internals.

The response is a 500, except for checks that fail closed: a proxy may pass a request on after a 5xx.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stoplog.asgi.denial import denial_text
from stoplog.asgi.problem import problem
from stoplog.asgi.rate_limit_headers import rate_limit_headers
from stoplog.asgi.responses import Rendered
from stoplog.client.answer import Answer
from stoplog.client.fail_open import DENY, INTERNAL_ERROR, OnUnavailable, degraded_answer
from stoplog.client.metrics import Metrics
from stoplog.errors import InvalidInput
from stoplog_gateway.http.failing_closed import asks_to_fail_closed
from stoplog_gateway.http.problems import BUG, FAILED_CLOSED, render_problem
from stoplog_gateway.http.responses import RenderedResponse

log: Final = logging.getLogger(__name__)


def answers_after_bug(
    scope: Scope, metrics: Metrics, on_unavailable: Sequence[OnUnavailable]
) -> list[Answer] | None:
    """Log the exception that is being handled, a bug, and return degraded answers to the checks it prevented.

    Args:
        scope: The request, with its method and path.
        metrics: Counts the checks.
        on_unavailable: ``allow`` or ``deny`` for each check.

    Returns:
        One answer for each check. ``None``, and logs nothing, if no check asks to fail closed: the response
        is a 500 then.
    """
    if DENY not in on_unavailable:
        return None
    _log_bug(scope)
    closed = [one == DENY for one in on_unavailable]
    for one in closed:
        metrics.count_degraded(INTERNAL_ERROR, one)
    return [degraded_answer(INTERNAL_ERROR, one) for one in closed]


def render_bug(scope: Scope) -> Rendered:
    """Log the exception that is being handled, a bug, and return its problem response."""
    _log_bug(scope)
    return render_problem(problem(BUG, "an unexpected error occurred; the gateway's log has the traceback"))


def render_failed_closed(answer: Answer) -> Rendered:
    """Return the response to a proxy whose check failed closed. The status is 429, never a 5xx."""
    detail, remedy = denial_text(answer)
    headers = [(b"cache-control", b"no-store"), *rate_limit_headers(answer)]
    return render_problem(problem(FAILED_CLOSED, detail, None, remedy), headers)


def _log_bug(scope: Scope) -> None:
    log.exception("bug in %s %r", scope["method"], scope["path"][:200])


class CatchBugs:
    """Answer a request whose exception no handler expects.

    The framework's own handler re-raises the exception, so that the server would log it a second time.
    Therefore, this middleware runs inside it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, and handle an exception that it does not handle."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def send_and_record(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_record)
        except Exception:
            if started:  # too late for another response: the server logs it and closes the connection
                raise
            rendered = render_after_bug(scope, scope["app"].state.limiter.metrics)
            await RenderedResponse(rendered)(scope, receive, send)


def render_after_bug(scope: Scope, metrics: Metrics) -> Rendered:
    """Log the exception that is being handled, a bug, and return the response to its request.

    That is a 500, unless a proxy sent the request and asks to fail closed.

    Args:
        scope: The request, with its method, path, query and header fields.
        metrics: Counts a check that failed closed.
    """
    try:
        on_unavailable: OnUnavailable = "deny" if asks_to_fail_closed(scope) else "allow"
    except InvalidInput:
        on_unavailable = "deny"
    answers = answers_after_bug(scope, metrics, [on_unavailable])
    return render_bug(scope) if answers is None else render_failed_closed(answers[0])
