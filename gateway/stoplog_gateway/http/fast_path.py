"""The fast path: answer checks without the web framework.

Routing a request through the framework costs several times as much CPU as the check itself. Therefore
:mod:`stoplog_gateway.http.protocol` passes the body of a plain check (JSON with a ``Content-Length``) to this
module, and a callback returns the response. Plain requests of proxies are passed on to
:mod:`stoplog_gateway.http.proxies`. All other requests take the routes. In overload, they are answered here
too (:meth:`FastPath.at_once`).

Both paths use the same functions to parse requests and to render responses. A property test compares their
responses byte by byte.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final

from starlette.types import Scope

from stoplog.asgi.rate_limit_headers import Headers
from stoplog.asgi.responses import Rendered, render
from stoplog.client.answer import Answer, PendingAnswer, unwrap
from stoplog.client.fail_open import DENY, REASONS, OnUnavailable
from stoplog.client.limiter import Limiter, steps_of_list
from stoplog.errors import InvalidInput, UpgradeFirst
from stoplog.policy import PLAN_MARK
from stoplog.wire.checks import Check
from stoplog_gateway.access.control import AccessControl, Refusal, bearer_token
from stoplog_gateway.access.scopes import Scope as TokenScope
from stoplog_gateway.http.auth import refuse_check_at_once
from stoplog_gateway.http.bugs import answers_after_bug, render_bug
from stoplog_gateway.http.handlers import AtOnce, Handler, SendResponse, without_body
from stoplog_gateway.http.known_heads import KnownHeads
from stoplog_gateway.http.long_lists import LongLists, Work
from stoplog_gateway.http.overload import MAX_BODY, OverloadRefusals, is_probe
from stoplog_gateway.http.problems import ProblemError, render_error
from stoplog_gateway.http.proxies import Proxies
from stoplog_gateway.http.request_body import announces_json, media_type, require_json
from stoplog_gateway.http.request_head import split_target
from stoplog_gateway.http.reservations_at_once import ReservationsAtOnce
from stoplog_gateway.http.routes.check import parse_check, parse_checks, render_answer
from stoplog_gateway.http.turns import Turns

if TYPE_CHECKING:
    from stoplog_gateway.http.tracing import RequestTracing

_MAX_SHORT_LIST: Final = 8 << 10
"""Maximum bytes of a list of checks that is handled at once, in about a millisecond."""

_DEGRADED: Final = 2 * len(REASONS)
"""Degraded answers that there can be. They have no numbers, so each one is rendered once."""

KnownHead = tuple[Handler, int]
"""The handler of a request with a certain head, and the bytes of its body."""


class FastPath:
    """Handle plain checks.

    Args:
        limiter: Limiter that answers the checks.
        access: Decides about each head. Requests that it does not permit are left to the routes. By default,
            local programs are permitted.
        legacy_headers: Send the ``X-RateLimit-*`` header fields too.
        turns: Shares the event loop between requests.
        tracing: Continues the callers' traces; ``None`` if tracing is off.
        proxies: Answers the requests of proxies. By default, they take the routes, and are refused in
            overload.
        refusals: Counts the requests that are refused in overload. By default, new ones.
    """

    def __init__(
        self,
        limiter: Limiter,
        *,
        legacy_headers: bool,
        turns: Turns | None = None,
        access: AccessControl | None = None,
        tracing: RequestTracing | None = None,
        proxies: Proxies | None = None,
        refusals: OverloadRefusals | None = None,
    ) -> None:
        self._limiter = limiter
        self._render = partial(render_answer, legacy=legacy_headers)
        self._render_degraded = lru_cache(_DEGRADED)(self._render)
        self._turns = turns or Turns()
        self._refusals = refusals or OverloadRefusals()
        self._reservations = ReservationsAtOnce(limiter, legacy_headers=legacy_headers)
        self._long_lists = LongLists(self._turns, self._refusals)
        self._tracing = tracing
        self._proxies = proxies
        self._access = access = access or AccessControl()
        self.known_heads: Final = KnownHeads[KnownHead]()
        """Heads of permitted plain checks, which need not be parsed again."""
        if access.tokens is not None:
            access.tokens.on_change(self.known_heads.clear)
        self._handlers: Final[dict[bytes, Handler]] = {
            b"/v1/check": self._handle_check,
            b"/v1/checks": self._handle_check_list,
        }
        self._at_once: Final[dict[bytes, Handler]] = {
            b"/v1/check": partial(self._handle_check, has_time=False),
            b"/v1/checks": partial(self._handle_check_list, has_time=False),
        }

    def handler_for(
        self,
        method: bytes,
        target: bytes,
        length: int,
        fields: Headers,
        headers: Headers,
        address: str | None,
    ) -> Handler | None:
        """Return the handler of a request, or ``None`` if the request must take the routes.

        Args:
            method: Its method.
            target: Its target, with its query.
            length: Bytes of its body, or :data:`~stoplog_gateway.http.request_head.IN_CHUNKS`.
            fields: The header fields that matter (:func:`~stoplog_gateway.http.known_heads.matters`), with
                names in lower case.
            headers: All header fields. A head with a body is remembered without the others, so only the
                handler of a request without a body may depend on them, or with tracing, which remembers none.
            address: IP address of the caller, if it is known. As *headers*.
        """
        if length < 0 or (length and not (method == b"POST" and announces_json(fields))):
            return None
        handler = self._handlers.get(target)
        if handler is not None:
            if not length or not self._access.permits_check(fields):
                return None
        elif self._proxies is not None:
            handler = self._proxies.handler_for(method, target, length, fields, headers, address)
        if handler is None or self._tracing is None:
            return handler
        return partial(self._handle_traced, handler, headers)

    def at_once(self, method: bytes, target: bytes, headers: Headers, address: str | None) -> AtOnce | None:
        """Return how to answer a request for which this turn has no time; ``None`` for a probe.

        Args:
            method: Its method.
            target: Its target, with its query.
            headers: All its header fields, with names in lower case.
            address: IP address of the caller, if it is known.
        """
        path, query = split_target(target)
        if is_probe(method, path):
            return None
        answer = None
        if self._proxies is not None:
            answer = self._proxies.at_once(method, path, query, headers, address)
        if answer is None:
            handler = self._reservations.handler_for(method, path)
            if handler is None and method == b"POST":
                handler = self._at_once.get(path)
            if handler is not None:
                if method == b"POST":
                    handler = partial(self._handle_json, headers, handler)
                handle = partial(self._handle_at_once, handler, headers, address)
                answer = AtOnce(handle, _MAX_SHORT_LIST, self._refusals.refuse_list)
        if answer is None:
            refuse = self._refusals.refuse_request
            answer = AtOnce(refuse, MAX_BODY, refuse)
        if method == b"HEAD":
            return AtOnce(without_body(answer.handle), answer.max_body, without_body(answer.refuse))
        return answer

    def _handle_at_once(
        self, handler: Handler, headers: Headers, address: str | None, body: bytes, send: SendResponse
    ) -> None:
        decision = self._access.decide(TokenScope.CHECK, bearer_token(headers), headers)
        try:
            if isinstance(decision, Refusal):
                raise refuse_check_at_once(self._access, decision, address, for_proxies=False)
        except ProblemError as exc:
            send(_render_failure(exc, ""))
        else:
            handler(body, send)

    def _handle_json(self, headers: Headers, handler: Handler, body: bytes, send: SendResponse) -> None:
        try:
            require_json(media_type(headers))
        except ProblemError as exc:
            send(_render_failure(exc, ""))
        else:
            handler(body, send)

    def handler_of(self, head: bytes) -> Handler | None:
        """Return the handler of a request without a body whose head is known, or ``None``."""
        return None if self._proxies is None else self._proxies.handler_of(head)

    def remember(
        self, head: bytes, handler: Handler, body_size: int, *, target: bytes, fields: Headers
    ) -> None:
        """Remember the *head* of a request that :meth:`handler_for` returned *handler* for."""
        if self._tracing is not None:
            return
        if body_size:
            self.known_heads.remember(head, (handler, body_size))
        elif self._proxies is not None:
            self._proxies.remember(head, target, fields)

    def _handle_traced(self, handler: Handler, headers: Headers, body: bytes, send: SendResponse) -> None:
        assert self._tracing is not None
        with self._tracing.continue_trace(headers):
            handler(body, send)

    def _handle_check(self, body: bytes, send: SendResponse, *, has_time: bool = True) -> None:
        on_unavailable: OnUnavailable = "allow"
        try:
            check, on_unavailable = parse_check(body)
            limiter = self._limiter
            if check.plan[:1] == PLAN_MARK:
                limiter.require_stated_plans(check.plan)
            ask = limiter.ask if has_time and self._turns.admits_check() else limiter.answer_at_once
            pending = ask(check, on_unavailable == DENY)
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            send(self._render_failed_check(exc, on_unavailable))
        else:
            if isinstance(pending, Answer):
                self._send_answer(send, pending)
            else:
                pending.add_done_callback(partial(self._send_answer, send))

    def _send_answer(self, send: SendResponse, pending: PendingAnswer) -> None:
        try:
            answer = unwrap(pending)
            rendered = self._render_degraded(answer) if answer.degraded else self._render(answer)
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            rendered = _render_failure(exc, "/v1/check")
        send(rendered)

    def _render_failed_check(self, exc: Exception, on_unavailable: OnUnavailable) -> Rendered:
        if not isinstance(exc, InvalidInput | UpgradeFirst | ProblemError):
            answers = answers_after_bug(_scope("/v1/check"), self._limiter.metrics, [on_unavailable])
            if answers is not None:
                return self._render(answers[0])
        return _render_failure(exc, "/v1/check")

    def _handle_check_list(self, body: bytes, send: SendResponse, *, has_time: bool = True) -> None:
        limiter = self._limiter
        if len(body) <= _MAX_SHORT_LIST:
            ask = limiter.ask if has_time and self._turns.admits_check() else limiter.answer_at_once
            deque(self._work_on_list(body, send, ask), maxlen=0)
        else:
            self._long_lists.add(self._work_on_list(body, send, limiter.ask), send)

    def _work_on_list(
        self, body: bytes, send: SendResponse, ask: Callable[[Check, bool], PendingAnswer]
    ) -> Work:
        """Parse a list of checks, and *ask* them, no more than others should wait for."""
        parsed: list[tuple[Check, OnUnavailable]] = []
        pending: list[PendingAnswer] = []
        stated: list[str] = []
        try:
            for part in parse_checks(body):
                parsed += part
                stated += [check.plan for check, _ in part if check.plan[:1] == PLAN_MARK]
                yield None
            for plan in dict.fromkeys(stated):
                self._limiter.require_stated_plans(plan)
            for step in steps_of_list(pending, len(parsed)):
                if isinstance(step, slice):
                    pending += [ask(check, one == DENY) for check, one in parsed[step]]
                    yield None
                else:
                    yield step
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            send(self._render_failed_list(exc, [one for _, one in parsed]))
        else:
            self._send_answers(send, pending, 0)

    def _send_answers(
        self, send: SendResponse, pending: Sequence[PendingAnswer], first: int, _: object = None
    ) -> None:
        """Send the response once all answers are there; those before index *first* are."""
        for index in range(first, len(pending)):
            item = pending[index]
            if not isinstance(item, Answer) and not item.done():
                item.add_done_callback(partial(self._send_answers, send, pending, index + 1))
                return
        try:
            rendered = render([unwrap(item) for item in pending])
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            rendered = _render_failure(exc, "/v1/checks")
        send(rendered)

    def _render_failed_list(self, exc: Exception, on_unavailable: Sequence[OnUnavailable]) -> Rendered:
        if not isinstance(exc, InvalidInput | UpgradeFirst | ProblemError):
            answers = answers_after_bug(_scope("/v1/checks"), self._limiter.metrics, on_unavailable)
            if answers is not None:
                return render(answers)
        return _render_failure(exc, "/v1/checks")


def _render_failure(exc: Exception, path: str) -> Rendered:
    return render_error(exc) or render_bug(_scope(path))


def _scope(path: str) -> Scope:
    return {"method": "POST", "path": path}
