"""A limiter without a store, for tests of the layers above it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from stoplog.client.answer import Answer
from stoplog.client.cluster_status import Readiness, Status
from stoplog.client.fail_open import OVERLOAD, OnUnavailable, degraded_answer, fails_closed
from stoplog.client.limiter import Limiter, validate
from stoplog.client.limits_admin import Applied, LimitsPage, StoredLimit, check_page, read_page_cursor
from stoplog.client.limits_history import HistoryPage, read_cursor
from stoplog.client.metrics import Metrics
from stoplog.client.refunds import Refund, check_refund_id
from stoplog.client.reservations import (
    Reservation,
    ReservationId,
    Settled,
    check_ttl,
    check_used,
    decode_id,
    encode_id,
)
from stoplog.client.top_rejected import Rejected
from stoplog.identity.identity import Identity
from stoplog.policy import Policy
from stoplog.wire.audit import ChangeSource
from stoplog.wire.checks import Check
from stoplog.wire.limit_updates import UpdateKey
from stoplog.wire.replies import HoldsInUse, LookupReply, OpenHolds, WindowUse

ALLOWED = Answer(True, 100, 99, 60_000, 0, -1)
RESERVATION_ID = encode_id(ReservationId(1, 7, 1 << 63, "alice", "", "", 1_000))


class FakeLimiter(Limiter):
    """A limiter that answers every check with ``answer`` and keeps policies in a dict.

    If ``error`` is set, every call raises it.
    """

    def __init__(self, identity: Identity | None = None) -> None:
        self.identity = identity or Identity()
        self.metrics = Metrics()
        self._running = False
        self.checks: list[Check] = []
        self.charges: list[Check] = []
        self.refunds: list[Check] = []
        self.fail_closed: list[bool] = []
        self.ttls: list[int] = []
        self.settled: list[tuple[str, int]] = []
        self.has_settled = asyncio.Event()
        self.stored: dict[UpdateKey, Policy] = {}
        self.changes: list[UpdateKey] = []
        self.sources: list[ChangeSource | None] = []
        self.histories: list[tuple[UpdateKey, str | None, int]] = []
        self.history = HistoryPage([], None)
        self.answer = ALLOWED
        self.applied = Applied(True, 41, True)
        self.readiness = Readiness(True)
        self.error: Exception | None = None
        self.pages: list[tuple[str | None, int, str | None]] = []

    async def __aenter__(self) -> Self:
        self._running = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running = False

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    async def until_failure(self) -> None:
        await asyncio.Event().wait()

    def require_stated_plans(self, plan: str) -> None:
        self._fail()

    def ask(self, check: Check, fails_closed: bool = False) -> Answer:
        self._fail()
        self.checks.append(check)
        self.fail_closed.append(fails_closed)
        return self.answer

    def ask_charge(self, check: Check) -> Answer:
        self._fail()
        self.charges.append(check)
        return self.answer

    def ask_refund(self, check: Check) -> Answer:
        self._fail()
        self.refunds.append(check)
        return self.answer

    async def refund(
        self, client: str, cost: int = 1, *, refund_id: str | None = None, plan: str = "", resource: str = ""
    ) -> Refund:
        self._fail()
        check = Check(client, cost, plan, resource)
        validate(check)
        id_ = "new" if refund_id is None else check_refund_id(refund_id)
        self.refunds.append(check)
        return Refund(id_, "refunded", cost)

    def answer_at_once(self, check: Check, fails_closed: bool = False) -> Answer:
        self.ask(check, fails_closed)
        return degraded_answer(OVERLOAD, fails_closed)

    async def check(
        self,
        client: str,
        cost: int = 1,
        *,
        plan: str = "",
        resource: str = "",
        on_unavailable: OnUnavailable = "allow",
    ) -> Answer:
        return self.ask(Check(client, cost, plan, resource), fails_closed(on_unavailable))

    async def check_many(
        self, checks: Sequence[Check], *, on_unavailable: OnUnavailable | Sequence[OnUnavailable] = "allow"
    ) -> list[Answer]:
        self._fail()
        self.checks.extend(checks)
        each = [on_unavailable] * len(checks) if isinstance(on_unavailable, str) else on_unavailable
        self.fail_closed += [one == "deny" for one in each]
        return [Answer(True, 100, 99 - i, 60_000, 0, -1) for i in range(len(checks))]

    async def open_reservation(
        self,
        client: str,
        cost: int = 1,
        *,
        ttl_ms: int = 60_000,
        plan: str = "",
        resource: str = "",
        on_unavailable: OnUnavailable = "allow",
    ) -> Reservation:
        check = Check(client, cost, plan, resource)
        validate(check)
        check_ttl(ttl_ms)
        self.ttls.append(ttl_ms)
        answer = self.ask(check, fails_closed(on_unavailable))
        fields: dict[str, Any] = {name: getattr(answer, name) for name in Answer.__struct_fields__}
        id_ = RESERVATION_ID if answer.allowed or answer.degraded else None
        return Reservation(**fields, id=id_, held=cost, ttl_ms=ttl_ms)

    async def settle(self, reservation_id: str, used: int) -> Settled:
        self._fail()
        decode_id(reservation_id)
        self.settled.append((reservation_id, check_used(used)))
        self.has_settled.set()
        return Settled(reservation_id, "settled", used)

    def open_reservation_at_once(self, check: Check, ttl_ms: int, fails_closed: bool = False) -> Reservation:
        validate(check)
        check_ttl(ttl_ms)
        self.ttls.append(ttl_ms)
        answer = self.answer_at_once(check, fails_closed)
        fields: dict[str, Any] = {name: getattr(answer, name) for name in Answer.__struct_fields__}
        return Reservation(**fields, id="id")

    def settle_at_once(self, reservation_id: str, used: int) -> Settled:
        self._fail()
        decode_id(reservation_id)
        self.settled.append((reservation_id, check_used(used)))
        return Settled(reservation_id, "unconfirmed", reason=OVERLOAD)

    async def set_limits(
        self, key: UpdateKey, policy: Policy | None, *, source: ChangeSource | None = None
    ) -> Applied:
        self._fail()
        self.changes.append(key)
        self.sources.append(source)
        if policy is None:
            self.stored.pop(key, None)
        else:
            self.stored[key] = policy
        return self.applied

    async def get_limits(self, key: UpdateKey) -> Policy | None:
        self._fail()
        return self.stored.get(key)

    async def list_limits(
        self, after: str | None = None, limit: int = 100, kind: str | None = None
    ) -> LimitsPage:
        self._fail()
        check_page(limit, kind)
        read_page_cursor(after, 4)
        self.pages.append((after, limit, kind))
        gone = [StoredLimit(UpdateKey("client", "gone"), None, 3)] if after is not None else []
        return LimitsPage([*gone, *(StoredLimit(k, p, 7) for k, p in self.stored.items())], "cursor")

    async def reset(self, client: str, resource: str = "", *, source: ChangeSource | None = None) -> Applied:
        return await self.set_limits(UpdateKey("reset", client, resource), None, source=source)

    async def limits_history(
        self, key: UpdateKey, before: str | None = None, limit: int = 100
    ) -> HistoryPage:
        self._fail()
        check_page(limit)
        read_cursor(before)
        self.histories.append((key, before, limit))
        return self.history

    def status(self) -> Status:
        return Status("normal", 1_760_000_000_000, None, [], 0, 0, "ok", None, 4, [])

    async def look_up(self, client: str, *, plan: str = "", resource: str = "") -> LookupReply:
        self._fail()
        self.checks.append(Check(client, 0, plan, resource))
        return LookupReply(
            "g?1",
            41,
            UpdateKey("plan", plan) if plan else None,
            [WindowUse("100/minute", 60, 43_000, 45)],
            holds=HoldsInUse(OpenHolds(2, 40, 12_000), OpenHolds(1, 5, 1_900)),
        )

    def most_rejected(self) -> list[Rejected]:
        return [Rejected("mallory", 7, 1)]

    async def is_ready(self) -> bool:
        """Return whether the store answers checks."""
        return self.readiness.ready

    @property
    def node_id(self) -> str:
        return "gateway-1"

    async def ready(self) -> Readiness:
        return self.readiness
