"""Answer the requests of proxies for which a turn of the event loop has no time.

Proxies ask checks at ``/v1/authorize`` and ``/json``. In overload, these checks fail open (or closed) at
once, as those of :mod:`stoplog_gateway.http.fast_path` do, without the framework. A check of
``/v1/authorize`` is still published and counted. A request to ``/json`` is not, because parsing its protobuf
message takes too long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from pydantic import ValidationError

from stoplog.asgi.rate_limit_headers import Headers
from stoplog.asgi.responses import Rendered
from stoplog.client.answer import Answer, PendingAnswer, unwrap
from stoplog.client.limiter import Limiter
from stoplog.errors import InvalidInput, SettingsError
from stoplog.wire.checks import Check
from stoplog_gateway.access.control import AccessControl, Refusal, proxy_token
from stoplog_gateway.access.proxy_paths import AUTHORIZE, ENVOY_JSON, is_authorize
from stoplog_gateway.access.scopes import Scope
from stoplog_gateway.envoy import rate_limit_service
from stoplog_gateway.envoy.mapping import DescriptorMapping
from stoplog_gateway.http.failing_closed import asks_to_fail_closed
from stoplog_gateway.http.handlers import Handler, SendResponse
from stoplog_gateway.http.problems import ProblemError, render_error
from stoplog_gateway.http.request_body import MAX_SLOW_BODY, decode, require_json
from stoplog_gateway.http.routes.authorize import AuthorizeQuery, client_in, render_authorization
from stoplog_gateway.http.routes.envoy_json import render_response

if TYPE_CHECKING:
    from stoplog_gateway.envoy.service import RateLimitService


class _Domain(msgspec.Struct):
    """The part of a ``RateLimitRequest`` that decides whether it fails closed."""

    domain: str | None = None


_domain_decoder: Final = msgspec.json.Decoder(_Domain)


class _Asked(NamedTuple):
    """A request of a proxy, without its body."""

    method: bytes
    path: str
    query: bytes
    headers: Headers


class ProxiesInOverload:
    """Handle the requests of proxies without a decision of the store.

    Args:
        limiter: Limiter that counts the checks.
        access: Decides about each request. Those that it does not permit are left to the routes.
        mapping: Decides which domains of Envoy fail closed.
        client_header: Header field with the client id.
        legacy_headers: Send the ``X-RateLimit-*`` header fields too.
    """

    def __init__(
        self,
        limiter: Limiter,
        access: AccessControl,
        mapping: DescriptorMapping,
        *,
        client_header: str,
        legacy_headers: bool,
    ) -> None:
        self._limiter = limiter
        self._access = access
        self._client_header = client_header
        self._legacy_headers = legacy_headers
        self._mapping = mapping

    @cached_property
    def _service(self) -> RateLimitService | None:
        """The service for Envoy. It imports protobuf, so only the first request makes it."""
        try:
            return rate_limit_service(self._limiter, self._mapping, legacy_headers=self._legacy_headers)
        except SettingsError:  # without the extra, the route states the remedy
            return None

    def handler_for(self, method: bytes, target: bytes, length: int, headers: Headers) -> Handler | None:
        """Return the handler of a request, or ``None`` if the routes must handle it.

        Args:
            method: Its method.
            target: Its target, with the query.
            length: Bytes of its body; negative if they are not announced.
            headers: All its header fields, with names in lower case.
        """
        target_path, _, query = target.partition(b"?")
        path = target_path.decode("latin-1")
        handle: Callable[[_Asked, bytes], Rendered | PendingAnswer]
        if is_authorize(path):
            handle = self._authorize
            if path == AUTHORIZE and _parse_query(query) is None:
                return None
        elif path == ENVOY_JSON and method == b"POST" and self._service is not None:
            handle = self._answer_envoy
        else:
            return None
        if not 0 <= length <= MAX_SLOW_BODY:
            return None
        if isinstance(self._access.decide(Scope.CHECK, proxy_token(headers), None), Refusal):
            return None
        return partial(self._handle, handle, _Asked(method, path, query, headers))

    def _handle(
        self,
        handle: Callable[[_Asked, bytes], Rendered | PendingAnswer],
        asked: _Asked,
        body: bytes,
        send: SendResponse,
    ) -> None:
        if asked.method == b"HEAD":
            send = partial(_send_without_body, send)
        try:
            result = handle(asked, body)
        except (InvalidInput, ProblemError) as exc:
            rendered = render_error(exc)
            assert rendered is not None
            send(rendered)
            return
        if isinstance(result, Rendered):
            send(result)
        elif isinstance(result, Answer):
            self._send_answer(send, result)
        else:
            result.add_done_callback(partial(self._send_answer, send))

    def _send_answer(self, send: SendResponse, pending: PendingAnswer) -> None:
        send(render_authorization(unwrap(pending), legacy=self._legacy_headers))

    def _authorize(self, asked: _Asked, _: bytes) -> PendingAnswer:
        client = client_in(asked.headers, self._client_header)
        closed = self._fails_closed(asked)
        # Below that path, the query is that of the proxy's caller.
        query = (_parse_query(asked.query) if asked.path == AUTHORIZE else None) or AuthorizeQuery()
        check = Check(client, query.cost, query.plan or "", query.resource or "")
        return self._limiter.answer_at_once(check, closed)

    def _answer_envoy(self, asked: _Asked, body: bytes) -> Rendered:
        media = next((value for name, value in asked.headers if name == b"content-type"), None)
        require_json(None if media is None else media.decode("latin-1"))
        closed = self._fails_closed(asked)
        domain = decode(_domain_decoder, body).domain or ""
        assert self._service is not None
        return render_response(self._service.answer_in_overload(domain, fails_closed=closed))

    def _fails_closed(self, asked: _Asked) -> bool:
        return asks_to_fail_closed(
            {"path": asked.path, "query_string": asked.query, "headers": asked.headers}
        )


def _send_without_body(send: SendResponse, rendered: Rendered) -> None:
    send(rendered._replace(body=b""))


@lru_cache(256)
def _parse_query(query: bytes) -> AuthorizeQuery | None:
    """Return the parameters in *query*, which is the proxy's; ``None`` if the route must refuse them."""
    try:
        unquote_to_bytes(query).decode()
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        return AuthorizeQuery.model_validate(dict(pairs))
    except (UnicodeDecodeError, ValidationError, InvalidInput):
        return None
