"""Reservations: units that are held for a client until their caller reports how many it used.

Also charges and refunds that no limit judges, for callers that know the cost afterwards and reserved nothing.

A reservation travels with a check, in the record of its batch (:mod:`stoplog.wire.holds`). Its id names the
hold, the client, the resource and the plan. So any gateway can settle it, also after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from asyncio import Future
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Final, Literal

import msgspec

from stoplog.client.answer import Answer, HeldAnswer, Outcome, PendingAnswer, answer_of
from stoplog.client.batcher import Batcher
from stoplog.client.deferred_settlements import Deferred, DeferredSettlements
from stoplog.client.fail_open import GROWING, NO_HOLDS
from stoplog.client.metrics import Metrics
from stoplog.client.pending_batch import HoldCall
from stoplog.client.refunds import Refund, check_refund_id, hold_id_of, new_refund_id, refund_of
from stoplog.errors import InvalidId, InvalidInput, UpgradeFirst
from stoplog.log_throttle import LogThrottle
from stoplog.policy import check_cost, check_id
from stoplog.wire.checks import Check
from stoplog.wire.holds import (
    CHARGE,
    FIRST_RESERVED_NUMBER,
    MAX_TTL_MS,
    NOT_OPEN,
    REFUND,
    RESERVATION,
    SETTLED_NOW,
    Ask,
    HoldId,
    Settlement,
)

log = logging.getLogger(__name__)

DEFAULT_TTL_MS: Final = 60_000
"""Milliseconds that a reservation lasts unless its caller says otherwise."""

_LOG_PAUSE_S: Final = 60.0
"""Seconds between two log lines about refunds that were not made."""

State = Literal["settled", "over", "unknown", "unlimited", "unconfirmed"]


class Reservation(Answer, frozen=True, gc=False):
    """The answer to a request for a reservation: that to a check, with an id.

    Attributes:
        id: Settles the reservation. ``None`` if it was denied. A degraded answer has an id as well, because
            the store may still grant the reservation.
        held: Units held; 0 if the client is unlimited, or nothing was granted.
        ttl_ms: Milliseconds until the reservation ends. Its units are then charged. 0 if nothing is held.
        detail: Why it was denied, if no limit on requests caused that; else ``None``.
    """

    id: str | None = None
    held: int = 0
    ttl_ms: int = 0
    detail: str | None = None


class Settled(msgspec.Struct, frozen=True):
    """What became of a reservation.

    Attributes:
        id: Its id.
        state: ``settled``: by this call or an earlier one. ``over``: its time to live is over; if it was not
            settled before, all of its units were charged at its end. The store does not remember which of
            both happened. ``unknown``: the store has no such reservation; it was never granted, or was
            settled and is forgotten. ``unlimited``: the client was unlimited, so nothing was held.
            ``unconfirmed``: the store did not answer in time; the call can be repeated.
        used: Units charged by the call that settled it; ``None`` in all other states.
        repeated: Whether an earlier call had settled it.
        reason: Why the store did not answer, one of :data:`stoplog.client.fail_open.REASONS`; else ``None``.
    """

    id: str
    state: State
    used: int | None = None
    repeated: bool = False
    reason: str | None = None


_U64 = Annotated[int, msgspec.Meta(ge=0)]


class ReservationId(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The content of an id.

    Attributes:
        version: The version of this format.
        incarnation: With the number, identifies the hold in the log.
        number: Random, from 2^63 on.
        client: Id of the client.
        resource: The resource; empty for none.
        plan: The plan; empty for none.
        expires_ms: The earliest time at which the reservation may end, by the clock of the process that
            asked, ms since the epoch; 0 if nothing was held because the client is unlimited.
    """

    version: Literal[1]
    incarnation: _U64
    number: _U64
    client: str
    resource: str
    plan: str
    expires_ms: _U64

    @property
    def hold(self) -> HoldId:
        """The id of the hold in the log."""
        return self.incarnation, self.number, 0


_decode: Final = msgspec.msgpack.Decoder(ReservationId).decode
_encode: Final = msgspec.msgpack.Encoder().encode


def encode_id(id_: ReservationId) -> str:
    """Return the text of an id."""
    return urlsafe_b64encode(_encode(id_)).rstrip(b"=").decode()


def decode_id(text: str, field: str = "reservation_id") -> ReservationId:
    """Return the content of an id.

    Raises:
        InvalidId: It is not the id of a reservation; names *field*.
    """
    try:
        id_ = _decode(urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)))
        check_id(id_.client, field)
        for part in (id_.resource, id_.plan):
            if part:
                check_id(part, field)
        if (
            not FIRST_RESERVED_NUMBER <= id_.number < 1 << 64
            or id_.incarnation >= 1 << 64
            or encode_id(id_) != text
        ):
            raise InvalidId(field, "", "")
    except (NotBase64, UnicodeError, msgspec.MsgspecError, InvalidId, RecursionError) as exc:
        remedy = "use the id in the answer to the reservation"
        raise InvalidId(field, "not an id of a reservation", remedy) from exc
    return id_


def check_ttl(ttl_ms: int, field: str = "ttl_ms") -> int:
    """Return *ttl_ms* if a reservation may last so long.

    Raises:
        InvalidInput: It is no whole number from 1 to 3,600,000; names *field*.
    """
    if type(ttl_ms) is not int:
        raise InvalidInput(field, "not a whole number", "use 1 to 3,600,000 milliseconds")
    if not 1 <= ttl_ms <= MAX_TTL_MS:
        raise InvalidInput(field, "out of bounds", "use 1 to 3,600,000 milliseconds")
    return ttl_ms


def check_used(used: int, field: str = "used") -> int:
    """Return *used* if so many units can be charged.

    Raises:
        InvalidCost: It is no whole number from 0 to 1,000,000; names *field*.
    """
    return check_cost(used, field)


class Reservations:
    """Opens and settles reservations, charges and refunds. Use it from the event loop of its limiter only.

    Args:
        incarnation: Random 64 bits that identify this run.
        metrics: Counts reservations, settlements and refunds.
        deadline_s: Seconds that calls wait for the first heartbeats, all of them together.
        wall_ms: Returns the milliseconds since the Unix epoch.
        deferred: Keeps the settlements that are refused because the number of partitions grows.
        old_workers: Returns the ids of the live workers that cannot read reservations.

    Attributes:
        heard: Set once heartbeats have been read, which tell the partitions that grant reservations.
    """

    def __init__(
        self,
        incarnation: int,
        metrics: Metrics,
        deadline_s: float,
        wall_ms: Callable[[], int],
        deferred: DeferredSettlements,
        old_workers: Callable[[], list[str]],
    ) -> None:
        self._incarnation = incarnation
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._wall_ms = wall_ms
        self._deferred = deferred
        self._old_workers = old_workers
        self._throttle = LogThrottle(_LOG_PAUSE_S, time.monotonic)
        self.heard = asyncio.Event()
        self._heard_until: float | None = None

    async def open(self, batcher: Batcher, check: Check, ttl_ms: int, fails_closed: bool) -> Reservation:
        """Hold the cost of *check*, which is valid, for *ttl_ms*.

        Raises:
            InvalidInput: A worker refused the check.
            UpgradeFirst: The partition grants no reservations, because of workers of an older release.
        """
        self._refuse_before_upgrade(batcher, check.client, "reservations")
        asked_ms, ask = self._wall_ms(), self._ask(RESERVATION, 0, ttl_ms)
        pending = batcher.hold(check, HoldCall(ask, ()), fails_closed)
        try:
            answer = pending if isinstance(pending, Answer) else answer_of(await pending)
        except asyncio.CancelledError:
            # Nobody will know the id, so nobody could settle it.
            bearer, until_ms = _bearer(check.client, check.plan, check.resource), asked_ms + ttl_ms
            self._settle(batcher, Deferred(bearer, Settlement(ask.id, 0), until_ms))
            raise
        return self._reserved(answer, check, ask, asked_ms)

    async def wait_for_heartbeats(self, until: float) -> None:
        """Wait a little for the first heartbeats, which tell what the workers can do.

        The time begins with the first call that waits: without heartbeats, later ones do not wait again.

        Args:
            until: Longest wait (the monotonic time).
        """
        if self.heard.is_set():
            return
        if self._heard_until is None:
            self._heard_until = time.monotonic() + self._deadline_s
        left_s = min(self._heard_until, until) - time.monotonic()
        if left_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self.heard.wait()

    def open_at_once(self, batcher: Batcher, check: Check, ttl_ms: int, fails_closed: bool) -> Reservation:
        """As :meth:`open`, but do not wait: the answer is degraded, or a denial that is known."""
        ask = self._ask(RESERVATION, 0, ttl_ms)
        answer = batcher.hold_at_once(check, HoldCall(ask, ()), fails_closed)
        return self._reserved(answer, check, ask, self._wall_ms())

    def _ask(self, kind: Literal[1, 2, 3], units: int, ttl_ms: int) -> Ask:
        # Unpredictable, so that no other caller can settle it by guessing.
        id_: HoldId = (self._incarnation, FIRST_RESERVED_NUMBER | secrets.randbits(63), 0)
        return Ask(kind, id_, 0, units, ttl_ms)

    def _reserved(self, answer: Answer, check: Check, ask: Ask, asked_ms: int) -> Reservation:
        grant = answer.grant if isinstance(answer, HeldAnswer) else None
        counts = self._metrics.reservations
        if not answer.allowed and not answer.degraded:
            counts["denied"] += 1
            detail = answer.detail if isinstance(answer, HeldAnswer) else ""
            return self._reservation(answer, None, 0, 0, detail or None)
        counts["degraded" if answer.degraded else "granted"] += 1
        held, left_ms = (0, 0) if grant is None else (grant.units, grant.ttl_ms)
        lasts_ms = ask.ttl_ms if answer.degraded else left_ms
        # The log counts the time to live from the record on, which came after the call.
        expires_ms = asked_ms + lasts_ms if lasts_ms else 0
        incarnation, number, _ = ask.id
        parts = ReservationId(1, incarnation, number, check.client, check.resource, check.plan, expires_ms)
        return self._reservation(answer, encode_id(parts), held, left_ms, None)

    @staticmethod
    def _reservation(
        answer: Answer, id_: str | None, held: int, ttl_ms: int, detail: str | None
    ) -> Reservation:
        fields: dict[str, Any] = {name: getattr(answer, name) for name in Answer.__struct_fields__}
        return Reservation(**fields, id=id_, held=held, ttl_ms=ttl_ms, detail=detail)

    def charge(self, batcher: Batcher, check: Check) -> PendingAnswer:
        """Charge the cost of *check*, which is valid, although it may exceed the limits.

        A partition that grants no holds yet makes the charge only if it fits into the limits.
        """
        pending = self._adjust(batcher, check, self._ask(CHARGE, check.cost, 1))
        if isinstance(pending, Answer) and pending.reason == NO_HOLDS:
            batcher.publish(check)
        return pending

    def refund(self, batcher: Batcher, check: Check) -> PendingAnswer:
        """Return the cost of *check*, which is valid, to its client, if its limits are refundable.

        The log does not remember it: each call is a refund of its own.
        """
        pending = self._adjust(batcher, check, self._ask(REFUND, check.cost, 1))
        if isinstance(pending, Answer):
            self._refunded(pending, "")
        else:
            pending.add_done_callback(partial(self._on_refunded, check))
        return pending

    async def refund_once(self, batcher: Batcher, check: Check, refund_id: str | None) -> Refund:
        """As :meth:`refund`, but only if there was none with the same id in the last window.

        Raises:
            InvalidInput: The id is invalid, or that of a reservation.
            UpgradeFirst: The partition makes no refunds, because of workers of an older release.
        """
        id_ = new_refund_id() if refund_id is None else check_refund_id(refund_id)
        self._refuse_before_upgrade(batcher, check.client, "refunds")
        pending = self._adjust(batcher, check, Ask(REFUND, hold_id_of(id_), 1, check.cost, 1))
        return self._refunded(pending if isinstance(pending, Answer) else answer_of(await pending), id_)

    def _refuse_before_upgrade(self, batcher: Batcher, client: str, feature: str) -> None:
        if not batcher.grants_holds(client) and (old := self._old_workers()):
            raise UpgradeFirst(feature, old)

    def _adjust(self, batcher: Batcher, check: Check, ask: Ask) -> PendingAnswer:
        return batcher.hold(_bearer(check.client, check.plan, check.resource), HoldCall(ask, ()))

    def _on_refunded(self, check: Check, answered: Future[Outcome]) -> None:
        """Count a refund, and log it if it was not made: its caller looks at no answer."""
        outcome = None if answered.cancelled() else answered.result()
        if not isinstance(outcome, Answer):
            return
        self._refunded(outcome, "")
        why = outcome.detail if isinstance(outcome, HeldAnswer) else ""
        if why and (suppressed := self._throttle.admit()) is not None:
            log.warning("a refund to client %r was not made: %s%s", check.client, why, suppressed)

    def _refunded(self, answer: Answer, refund_id: str) -> Refund:
        """Return what became of a refund, and count it."""
        refund = refund_of(answer, refund_id)
        self._metrics.refunds["repeated" if refund.repeated else refund.state] += 1
        return refund

    async def settle(self, batcher: Batcher, text: str, used: int) -> Settled:
        """Charge *used* and give back the rest of the reservation with the id *text*.

        Raises:
            InvalidInput: The id or *used* is invalid, or a worker refused the settlement.
        """
        id_, used = decode_id(text), check_used(used)
        answer = None
        if id_.expires_ms:
            settling = _settling(id_, used)
            pending = self._settle(batcher, settling)
            answer = pending if isinstance(pending, Answer) else answer_of(await pending)
            if answer is not pending and answer.reason == GROWING:
                self._deferred.add(settling)
        return self._settled(answer, text, id_, used)

    def _settle(self, batcher: Batcher, settling: Deferred) -> PendingAnswer:
        """Publish a settlement, or have it published after a pause."""
        pending = batcher.hold(settling.check, HoldCall(None, (settling.settlement,)))
        if isinstance(pending, Answer) and pending.reason == GROWING:
            self._deferred.add(settling)
        return pending

    def settle_at_once(self, batcher: Batcher, text: str, used: int) -> Settled:
        """As :meth:`settle`, but do not wait: the settlement is published, and is unconfirmed."""
        id_, used = decode_id(text), check_used(used)
        answer = None
        if id_.expires_ms:
            settling = _settling(id_, used)
            answer = batcher.hold_at_once(settling.check, HoldCall(None, (settling.settlement,)))
            if answer.reason == GROWING:
                self._deferred.add(settling)
        return self._settled(answer, text, id_, used)

    def _settled(self, answer: Answer | None, text: str, id_: ReservationId, used: int) -> Settled:
        """Return what became of a reservation, and count it. *answer* is ``None`` if nothing was held."""
        settled = self._outcome(answer, text, id_, used)
        self._metrics.settlements["repeated" if settled.repeated else settled.state] += 1
        return settled

    def _outcome(self, answer: Answer | None, text: str, id_: ReservationId, used: int) -> Settled:
        if answer is None:
            return Settled(text, "unlimited")
        if not isinstance(answer, HeldAnswer) or len(answer.settled) != 1:
            return Settled(text, "unconfirmed", reason=answer.reason)
        [found] = answer.settled
        if found == SETTLED_NOW:
            return Settled(text, "settled", used)
        if found == NOT_OPEN:
            return Settled(text, "over" if self._wall_ms() >= id_.expires_ms else "unknown")
        return Settled(text, "settled", found, True)


def _bearer(client: str, plan: str, resource: str) -> Check:
    """Return a check that charges nothing and carries a settlement, a charge or a refund."""
    return Check(client, 0, plan, resource)


def _settling(id_: ReservationId, used: int) -> Deferred:
    bearer = _bearer(id_.client, id_.plan, id_.resource)
    return Deferred(bearer, Settlement(id_.hold, used), id_.expires_ms)
