"""Answer the requests of proxies without the web framework.

Proxies ask checks at ``/v1/authorize`` and ``/json``. Two methods return how such a request is answered:

- :meth:`Proxies.handler_for`: a plain request, that is a valid one to ``/v1/authorize`` without a body, or
  one to ``/json`` with a short JSON body. All other requests take the routes, whose functions are used here
  too. A property test compares the responses byte by byte.
- :meth:`Proxies.at_once`: any other request for which a turn of the event loop has no time. Its checks fail
  open (or closed) at once, as those of :mod:`stoplog_gateway.http.fast_path` do. An invalid request gets the
  same error as from the routes, if the fault is in a part that is read. So does a request that a bug
  prevents.

:mod:`stoplog_gateway.http.envoy_calls` handles the requests to ``/json``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

from stoplog.asgi.rate_limit_headers import Headers
from stoplog.asgi.responses import Rendered
from stoplog.client.answer import Answer, PendingAnswer, unwrap
from stoplog.client.limiter import Limiter
from stoplog.client.listed import answer_listed
from stoplog.errors import InvalidInput
from stoplog.identity.identity import Identity, Verdict
from stoplog.policy import PLAN_MARK
from stoplog.wire.checks import Check
from stoplog_gateway.access.control import AccessControl, Refusal, proxy_token
from stoplog_gateway.access.proxy_paths import AUTHORIZE, ENVOY_JSON, is_authorize
from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.envoy.mapping import DescriptorMapping
from stoplog_gateway.http.auth import refuse_check_at_once
from stoplog_gateway.http.bugs import render_after_bug
from stoplog_gateway.http.envoy_calls import EnvoyCalls
from stoplog_gateway.http.failing_closed import asks_to_fail_closed
from stoplog_gateway.http.handlers import AtOnce, Handler, SendResponse, without_body
from stoplog_gateway.http.known_heads import KnownProxyHeads
from stoplog_gateway.http.overload import MAX_BODY
from stoplog_gateway.http.problems import ProblemError, render_error
from stoplog_gateway.http.proxy_clients import ProxyClients
from stoplog_gateway.http.proxy_request import ProxyRequest
from stoplog_gateway.http.request_body import MAX_SLOW_BODY
from stoplog_gateway.http.request_head import split_target
from stoplog_gateway.http.routes.authorize import parse_query, render_authorization
from stoplog_gateway.http.turns import Turns

_TARGETS: Final = re.compile(
    rb"(?P<authorize>%s(?:[?/][!\"$-~]*)?)|%s(?:\?[!\"$-~]*)?" % (AUTHORIZE.encode(), ENVOY_JSON.encode())
)
"""Targets of printable ASCII without a fragment."""


class Proxies:
    """Handle the requests of proxies.

    Args:
        limiter: Limiter that answers the checks.
        access: Decides about each request.
        turns: Shares the event loop between requests.
        mapping: Maps descriptors of Envoy to clients.
        client_header: Header field with the client id.
        identity: The settings of client identity; by default, those of an empty environment.
        legacy_headers: Send the ``X-RateLimit-*`` header fields too.
    """

    def __init__(
        self,
        limiter: Limiter,
        access: AccessControl,
        turns: Turns,
        mapping: DescriptorMapping,
        *,
        client_header: str,
        identity: Identity | None = None,
        legacy_headers: bool,
    ) -> None:
        self._limiter = limiter
        self._access = access
        self._turns = turns
        self._clients = ProxyClients(client_header, identity)
        self._client_field = client_header.lower().encode()
        self._legacy_headers = legacy_headers
        self._known_heads = KnownProxyHeads[tuple[ProxyRequest, _Parameters]](client_header)
        if access.tokens is not None:
            access.tokens.on_change(self._known_heads.clear)
        self._envoy_calls = EnvoyCalls(limiter, turns, mapping, legacy_headers=legacy_headers)

    def handler_for(
        self,
        method: bytes,
        target: bytes,
        length: int,
        fields: Headers,
        headers: Headers,
        address: str | None,
    ) -> Handler | None:
        """Return the handler of a request, or ``None`` if it must take the routes.

        Args:
            method: Its method.
            target: Its target, with its query.
            length: Bytes of its body, which is JSON; 0 if it has none.
            fields: Its header fields that matter (:func:`~stoplog_gateway.http.known_heads.matters`), with
                names in lower case.
            headers: All its header fields, for a request without a body.
            address: IP address of the caller, if it is known.
        """
        found = _TARGETS.fullmatch(target)
        if found is None or not self._access.permits_proxy(fields):
            return None
        path, query = split_target(target)
        text = path.decode("utf-8", "replace")
        if found["authorize"] is not None:
            return None if length else self._authorize_handler(method, text, query, fields, headers, address)
        if not length or method != b"POST":
            return None
        return self._envoy_calls.handler_for(ProxyRequest("POST", text, query, fields), length)

    def handler_of(self, head: bytes) -> Handler | None:
        """Return the handler of a request with a head that is known except for its client, or ``None``.

        Args:
            head: Bytes up to the first empty line, including it.
        """
        known = self._known_heads.find(head)
        if known is None:
            return None
        (asked, parameters), value = known
        try:
            client, verdict = self._clients.identify(asked.address, [(self._client_field, value)])
        except ProblemError:
            return None
        handler = partial(self._handle_check, asked, *parameters.check(client), verdict)
        return without_body(handler) if head.startswith(b"HEAD") else handler

    def remember(self, head: bytes, target: bytes, fields: Headers) -> None:
        """Remember the *head* of a request that :meth:`handler_for` returned a handler for."""
        if not self._clients.by_header_alone or not self._known_heads.accepts(head):
            return
        _, query = split_target(target)
        # To the routes, HEAD is GET.
        asked = ProxyRequest("GET", AUTHORIZE, query, fields)
        self._known_heads.remember(head, (asked, _parameters(asked)))

    def _authorize_handler(
        self, method: bytes, path: str, query: bytes, fields: Headers, headers: Headers, address: str | None
    ) -> Handler | None:
        # To the routes, HEAD is GET.
        text = "GET" if method == b"HEAD" else method.decode("latin-1")
        handler = self._check_handler(ProxyRequest(text, path, query, fields, address), headers)
        return without_body(handler) if handler is not None and method == b"HEAD" else handler

    def _check_handler(self, asked: ProxyRequest, headers: Headers) -> Handler | None:
        try:
            check = self._authorize(asked, headers)
        except (InvalidInput, ProblemError):
            return None
        return partial(self._handle_check, asked, *check)

    def _handle_check(
        self,
        asked: ProxyRequest,
        check: Check,
        fails_closed: bool,
        verdict: Verdict,
        _: bytes,
        send: SendResponse,
    ) -> None:
        try:
            pending: PendingAnswer | None = answer_listed(verdict, self._limiter.metrics)
            if pending is None:
                self._require_stated_plans(check)
                ask = self._limiter.ask if self._turns.admits_check() else self._limiter.answer_at_once
                pending = ask(check, fails_closed)
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            send(self._render_failure(exc, asked))
        else:
            self._respond(asked, send, pending)

    def at_once(
        self, method: bytes, path: bytes, query: bytes, headers: Headers, address: str | None
    ) -> AtOnce | None:
        """Return how to answer a request without time for it, or ``None`` if it is none of a proxy.

        Args:
            method: Its method.
            path: Its path, without percent-encoding.
            query: Its query.
            headers: All its header fields, with names in lower case.
            address: IP address of the caller, if it is known.
        """
        text = path.decode("latin-1")
        asked = ProxyRequest(method.decode("latin-1"), text, query, headers, address)
        if is_authorize(text):
            handle = partial(self._handle_at_once, self._authorize_at_once, asked)
            return AtOnce(handle, MAX_BODY, handle)  # the body is that of the proxy's caller
        if text == ENVOY_JSON and method == b"POST" and self._envoy_calls.service is not None:
            calls = self._envoy_calls
            return AtOnce(
                partial(self._handle_at_once, calls.handle_at_once, asked),
                MAX_SLOW_BODY,
                partial(self._handle_at_once, calls.refuse_large, asked),
            )
        return None

    def _handle_at_once(
        self,
        handle: Callable[[ProxyRequest, bytes, SendResponse], None],
        asked: ProxyRequest,
        body: bytes,
        send: SendResponse,
    ) -> None:
        decision = self._access.decide(Scope.CHECK, proxy_token(asked.headers), None)
        if isinstance(decision, Refusal):
            refusal = refuse_check_at_once(self._access, decision, asked.address, for_proxies=True)
            send(self._render_failure(refusal, asked))
        else:
            handle(asked, body, send)

    def _authorize_at_once(self, asked: ProxyRequest, _: bytes, send: SendResponse) -> None:
        pending: PendingAnswer | None
        try:
            check, fails_closed, verdict = self._authorize(asked, asked.headers)
            pending = answer_listed(verdict, self._limiter.metrics)
            if pending is None:
                self._require_stated_plans(check)
                pending = self._limiter.answer_at_once(check, fails_closed)
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            send(self._render_failure(exc, asked))
        else:
            self._respond(asked, send, pending)

    def _require_stated_plans(self, check: Check) -> None:
        if check.plan[:1] == PLAN_MARK:
            self._limiter.require_stated_plans(check.plan)

    def _respond(self, asked: ProxyRequest, send: SendResponse, pending: PendingAnswer) -> None:
        """Send the response once the answer is there."""
        if isinstance(pending, Answer):
            self._send_answer(asked, send, pending)
        else:
            pending.add_done_callback(partial(self._send_answer, asked, send))

    def _send_answer(self, asked: ProxyRequest, send: SendResponse, pending: PendingAnswer) -> None:
        try:
            rendered = render_authorization(unwrap(pending), legacy=self._legacy_headers)
        except Exception as exc:  # noqa: BLE001 - _render_failure logs it
            rendered = self._render_failure(exc, asked)
        send(rendered)

    def _render_failure(self, exc: Exception, asked: ProxyRequest) -> Rendered:
        return render_error(exc) or render_after_bug(asked.scope, self._limiter.metrics)

    def _authorize(self, asked: ProxyRequest, headers: Headers) -> tuple[Check, bool, Verdict]:
        """Return the check in a request to ``/v1/authorize``, whether it fails closed, and its verdict.

        Args:
            asked: The request, with the header fields that matter.
            headers: All its header fields, of which one is the client id.

        Raises:
            ProblemError: No client is named, or a parameter is unknown or invalid.
            InvalidInput: A parameter or a header field is invalid.
        """
        client, verdict = self._clients.identify(asked.address, headers)
        return *_parameters(asked).check(client), verdict


class _Parameters(NamedTuple):
    """What a request to ``/v1/authorize`` asks, whoever its client is."""

    cost: int
    plan: str
    resource: str
    fails_closed: bool

    def check(self, client: str | None) -> tuple[Check, bool]:
        """Return the check of *client*, and whether it fails closed."""
        return Check(client or "", self.cost, self.plan, self.resource), self.fails_closed


def _parameters(asked: ProxyRequest) -> _Parameters:
    """Return the parameters of a request to ``/v1/authorize``.

    Raises:
        ProblemError: A parameter is unknown or invalid.
        InvalidInput: A parameter or a header field is invalid.
    """
    closed = asks_to_fail_closed(asked.scope)
    # Below that path, the query is that of the proxy's caller.
    query = parse_query(asked.query if asked.path == AUTHORIZE else b"")
    return _Parameters(query.cost, query.plan or "", query.resource or "", closed)
