"""Every error that Stoplog raises on purpose. Its text states what happened and what to do.

::

    StoplogError
    ├── InvalidInput           a mistake of the caller: names the field, the problem and the remedy
    │   ├── InvalidId          of a client, plan or resource
    │   ├── InvalidCost
    │   └── InvalidLimit       of a limit or a policy
    ├── UpgradeFirst           a worker of an older release cannot do this
    ├── Denied                 a reservation was denied: carries the answer
    ├── LimitExceeded          a limited function was called too often: carries the answer
    ├── WaitTimeout            the limits did not allow a cost in time; nothing was charged
    ├── Unavailable            no answer in time; a retry may succeed
    ├── Busy                   too many requests of one kind at once; a later one may succeed
    ├── SettingsError          a setting that cannot be used on this machine
    │   └── GreenThreads       gevent or eventlet has replaced the threads of this process
    ├── TopicError             the broker's topics contradict topics.yaml
    ├── InstanceTaken          another worker uses this worker's instance id
    ├── StateError             a worker's stored state and the log do not belong together
    │   ├── NewerFormat        a newer release has written it
    │   ├── TopicRecreated     the topic was deleted and created again
    │   └── OffsetGone         the log does not hold the offset of the state
    └── RecordError            a record that cannot be used; a worker moves it to dead-letters
        ├── UndecodableRecord
        └── MisroutedRecord    in a partition that is not its client's

Only :class:`Denied`, :class:`LimitExceeded`, :class:`WaitTimeout`, :class:`Unavailable` and :class:`Busy` can
be retried. All others need a change first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from stoplog.client.answer import Answer
    from stoplog.client.reservations import Reservation


class StoplogError(Exception):
    """Base class of all errors."""


class InvalidInput(StoplogError):
    """A mistake of the caller. Nothing was published.

    Args:
        field: Name of the invalid field, as the caller wrote it (``client_id``, ``limits[1]``).
        problem: The reason why it is invalid.
        remedy: A valid input, or how to find one.
    """

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field = field
        self.problem = problem
        self.remedy = remedy

    def within(self, place: str) -> Self:
        """Return the same error for an item of a list: *place* (``checks[3].``) precedes the field."""
        return type(self)(f"{place}{self.field}", self.problem, self.remedy)


class InvalidId(InvalidInput):
    """An invalid id of a client, plan or resource."""


class InvalidCost(InvalidInput):
    """A cost that is no whole number from 0 to 1,000,000."""


class InvalidLimit(InvalidInput):
    """A limit or a policy that cannot be enforced."""


class UpgradeFirst(StoplogError):
    """A worker of an older release is alive, and could not read what this call would write.

    Args:
        feature: What was asked for, as the subject of a sentence in the plural.
        nodes: The ids of these workers.
    """

    def __init__(self, feature: str, nodes: Sequence[str]) -> None:
        self.remedy = f"upgrade worker {' and worker '.join(nodes)} first, or stop it"
        super().__init__(f"{feature} need a newer release of all workers, in all lanes; {self.remedy}")


class Denied(StoplogError):
    """A reservation was denied: by the client's limits, or because it failed closed.

    Args:
        reservation: The answer. Its ``retry_after_ms`` says when the same reservation may be granted.
    """

    def __init__(self, reservation: Reservation) -> None:
        why = reservation.detail or "the client's limits do not allow it now"
        if reservation.reason:
            why = f"the store did not decide it ({reservation.reason}), so it fails closed"
        wait_ms = reservation.retry_after_ms
        retry = "waiting cannot help" if wait_ms is None else f"try again in {wait_ms:,} ms"
        super().__init__(f"the reservation was denied: {why}; {retry}")
        self.reservation = reservation


class LimitExceeded(StoplogError):
    """A function with a limit (:func:`stoplog.limit`) was called too often. It did not run.

    Args:
        resource: The name of the function.
        answer: The answer. Its ``retry_after_ms`` says when the call may be repeated.
    """

    def __init__(self, resource: str, answer: Answer) -> None:
        why = f"the store did not decide it ({answer.reason})" if answer.reason else f"limit {answer.limit}"
        wait_ms = answer.retry_after_ms
        retry = "waiting cannot help" if wait_ms is None else f"try again in {wait_ms:,} ms"
        super().__init__(f"{resource} was called too often: {why}; {retry}")
        self.answer = answer


class WaitTimeout(StoplogError, TimeoutError):
    """A client's limits did not allow a cost within the timeout. Nothing was charged.

    Args:
        client: The client.
        timeout: The timeout in seconds.
    """

    def __init__(self, client: str, timeout: float) -> None:
        super().__init__(f"the limits of {client!r} did not allow it in {timeout:g} s: try again later")
        self.client = client


class Unavailable(StoplogError):
    """A broker or worker did not answer in time. Whether a change was applied is unknown."""


class Busy(StoplogError):
    """Too many requests of this kind are waiting already."""


class SettingsError(StoplogError):
    """A setting that cannot be used on this machine: a port is taken, a directory is not writable."""


class GreenThreads(SettingsError):
    """gevent or eventlet has replaced the threads of this process, so no limiter can run in it."""


class TopicError(StoplogError):
    """A topic is missing, or differs from topics.yaml in a way that would corrupt counters."""


class InstanceTaken(StoplogError):
    """Another worker has joined the group under this worker's instance id."""


class StateError(StoplogError):
    """A worker's stored state and the log do not belong together. The text describes the recovery."""


class NewerFormat(StateError):
    """A newer release has written the state, in a format that this one cannot read."""


class TopicRecreated(StateError):
    """The state belongs to an earlier topic of the same name, which was deleted."""


class OffsetGone(StateError):
    """The log no longer holds the offset at which the state ends, or does not hold it yet."""


class RecordError(StoplogError):
    """A record that cannot be used. ``reason`` becomes a header of its dead letter."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UndecodableRecord(RecordError):
    """A record in none of the formats of :mod:`stoplog.wire`."""


class MisroutedRecord(RecordError):
    """A record in a partition to which its client does not hash."""
