"""Answer reservations and settlements for which a turn of the event loop has no time.

A reservation fails open or closed, and a settlement is unconfirmed, both with the reason ``overload``. Both
are published all the same, as checks are. The functions that parse and render are those of the routes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from starlette.types import Scope

from stoplog.asgi.responses import Rendered, render
from stoplog.client.fail_open import ALLOW, DENY, OnUnavailable
from stoplog.client.limiter import Limiter
from stoplog.errors import InvalidInput
from stoplog_gateway.http.bugs import render_bug
from stoplog_gateway.http.handlers import Handler, SendResponse
from stoplog_gateway.http.problems import ProblemError, render_error
from stoplog_gateway.http.routes.reservations import (
    parse_reservation,
    parse_used,
    render_reservation,
    reservation_after_bug,
)

PATH: Final = b"/v1/reservations"


class ReservationsAtOnce:
    """Answers reservations and settlements in overload.

    Args:
        limiter: Publishes them.
        legacy_headers: Send the ``X-RateLimit-*`` header fields too.
    """

    def __init__(self, limiter: Limiter, *, legacy_headers: bool) -> None:
        self._limiter = limiter
        self._legacy = legacy_headers

    def handler_for(self, method: bytes, path: bytes) -> Handler | None:
        """Return the handler of a request; ``None`` if it is about no reservation.

        Args:
            method: Its method.
            path: Its path, without percent-encoding.
        """
        if path == PATH:
            return self._reserve if method == b"POST" else None
        if not path.startswith(PATH + b"/"):
            return None
        id_, *rest = path[len(PATH) + 1 :].decode("latin-1").split("/")
        if id_ and method == b"POST" and rest == ["settle"]:
            return partial(self._settle, _scope(method, path), id_, parse_used)
        if id_ and method == b"DELETE" and not rest:
            return partial(self._settle, _scope(method, path), id_, _nothing)
        return None

    def _reserve(self, body: bytes, send: SendResponse) -> None:
        on_unavailable: OnUnavailable = ALLOW
        try:
            check, ttl_ms, on_unavailable = parse_reservation(body)
            answer = self._limiter.open_reservation_at_once(check, ttl_ms, on_unavailable == DENY)
            rendered = render_reservation(answer, legacy=self._legacy)
        except Exception as exc:  # noqa: BLE001 - _failed logs it
            rendered = self._failed(exc, on_unavailable)
        send(rendered)

    def _failed(self, exc: Exception, on_unavailable: OnUnavailable) -> Rendered:
        scope = _scope(b"POST", PATH)
        if not isinstance(exc, InvalidInput | ProblemError):
            answer = reservation_after_bug(scope, self._limiter.metrics, on_unavailable)
            if answer is not None:
                return render_reservation(answer, legacy=self._legacy)
        return render_error(exc) or render_bug(scope)

    def _settle(
        self, scope: Scope, id_: str, used_in: Callable[[bytes], int], body: bytes, send: SendResponse
    ) -> None:
        try:
            rendered = render(self._limiter.settle_at_once(id_, used_in(body)))
        except Exception as exc:  # noqa: BLE001 - render_bug logs it
            rendered = render_error(exc) or render_bug(scope)
        send(rendered)


def _nothing(_body: bytes) -> int:
    """Return the use of a reservation that is given back."""
    return 0


def _scope(method: bytes, path: bytes) -> Scope:
    return {"method": method.decode("latin-1"), "path": path.decode("latin-1")}
