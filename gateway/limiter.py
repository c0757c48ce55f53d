"""The limiter: may this client spend this now? The SDK, and what the HTTP routes call."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from gateway.admin import Applied, LimitsPage
from gateway.answer import Answer
from gateway.metrics import Metrics
from gateway.nodes import Readiness, Status
from gateway.settings import Settings
from streams.contract.policy import Policy
from streams.contract.records import Check, UpdateKey

__all__ = ["Answer", "Applied", "Check", "Limiter", "LimitsPage", "Readiness", "Status"]


class Limiter:
    """Asks the store, and lets through when it does not answer in time.

    ::

        async with Limiter(Settings()) as limiter:
            answer = await limiter.check("alice")

    Everything here belongs to the event loop it was entered in.
    """

    metrics: Metrics

    def __init__(self, settings: Settings) -> None:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        """Start. A broker that is not there is no error: checks are let through until it is.

        Raises:
            TopicError: the broker's topics contradict topics.yaml.
        """
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop: every check still waiting gets its answer first."""
        raise NotImplementedError

    async def check(self, client: str, cost: int = 1, *, plan: str = "", resource: str = "") -> Answer:
        """Spend *cost* of *client*'s limit if it allows that; a cost of 0 only looks.

        Raises:
            InvalidInput: an id or a cost that cannot be used; nothing was published.
        """
        raise NotImplementedError

    async def check_many(self, checks: Sequence[Check]) -> list[Answer]:
        """Check a list of any length; answers come in its order.

        Raises:
            InvalidInput: names the first offender, ``checks[3].client_id``; nothing was published.
        """
        raise NotImplementedError

    async def publish(self, client: str, cost: int = 1, *, plan: str = "", resource: str = "") -> None:
        """Have *cost* counted, without waiting for an answer.

        Raises:
            InvalidInput: as :meth:`check`.
        """
        raise NotImplementedError

    async def set_limits(self, key: UpdateKey, policy: Policy | None) -> Applied:
        """Hold a client, plan or the default (``key.kind``) to *policy*; ``None`` deletes what it had.

        Returns:
            When the owners have applied it, or after ``apply_timeout_ms`` with ``applied`` false.

        Raises:
            InvalidInput: an id that cannot be used.
            Unavailable: it could not be published.
        """
        raise NotImplementedError

    async def get_limits(self, key: UpdateKey) -> Policy | None:
        """The policy stored under exactly this key; ``None`` if there is none.

        Raises:
            Unavailable: the broker did not answer.
        """
        raise NotImplementedError

    async def list_limits(
        self, after: str | None = None, limit: int = 100, kind: str | None = None
    ) -> LimitsPage:
        """One page of the stored policies.

        Args:
            after: ``next`` of the page before; ``None``: from the beginning.
            limit: Entries of the page, 1 to 1,000.
            kind: ``client``, ``plan`` or ``default`` only.

        Raises:
            InvalidInput: *after*, *limit* or *kind* is none of these.
            Unavailable: the broker did not answer.
        """
        raise NotImplementedError

    async def reset(self, client: str, resource: str = "") -> Applied:
        """Forget what *client* has spent; as :meth:`set_limits`."""
        raise NotImplementedError

    def status(self) -> Status:
        """Mode, nodes and the store's state, as known now; costs no I/O."""
        raise NotImplementedError

    async def ready(self) -> Readiness:
        """Whether checks are answered from the store, and if not, why."""
        raise NotImplementedError
