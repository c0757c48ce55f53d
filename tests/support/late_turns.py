"""Turns of the event loop that have no time, for tests of overload."""

from __future__ import annotations

from stoplog_gateway.http.turns import Turns


class LateTurns(Turns):
    """Turns without time for another check or request."""

    def admits_check(self) -> bool:
        return False

    def admits_request(self) -> bool:
        return False
