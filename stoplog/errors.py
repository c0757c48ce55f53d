"""Every error Stoplog raises on purpose.

::

    StoplogError
    ├── InvalidInput          a caller's mistake: names the field and the remedy
    │   ├── InvalidId         client, plan, resource
    │   ├── InvalidCost
    │   └── InvalidLimit      a limit or a policy
    ├── SettingsError         a setting cannot be followed on this machine
    ├── InstanceTaken         another worker runs under this one's instance id
    ├── RecordError           a record on a topic cannot be used; it goes to dead-letters
    │   ├── UndecodableRecord
    │   └── MisroutedRecord   the wrong partition for its client
    ├── TopicError            the broker's topics are not those of topics.yaml
    ├── StateError            stored state cannot be used as it is
    │   ├── TopicRecreated    a marker belongs to another incarnation of the topic
    │   └── OffsetGone        a marker points before the log's beginning or past its end
    └── Unavailable           an answer did not come: nothing is known to have been applied
"""

from __future__ import annotations

from typing import Self


class StoplogError(Exception):
    """Base of all; its text says what happened and what to do."""


class InvalidInput(StoplogError):
    """A caller's mistake.

    Args:
        field: The offending field, as the caller wrote it (``client_id``, ``limits[1]``).
        problem: What is wrong with it.
        remedy: What would be accepted.
    """

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field}: {problem}; {remedy}")
        self.field = field
        self.problem = problem
        self.remedy = remedy

    def within(self, place: str) -> Self:
        """The same mistake, in one of several: *place* (``checks[3].``) goes before the field."""
        return type(self)(f"{place}{self.field}", self.problem, self.remedy)


class InvalidId(InvalidInput):
    """A client, plan or resource id that cannot be used."""


class InvalidCost(InvalidInput):
    """A cost that is not a whole number from 0 to 1,000,000."""


class InvalidLimit(InvalidInput):
    """A limit or a policy that cannot be enforced."""


class SettingsError(StoplogError):
    """A setting is well-formed and cannot be followed here: a port is taken, a folder not writable."""


class InstanceTaken(StoplogError):
    """The group knows another worker under this one's instance id."""


class RecordError(StoplogError):
    """A record that cannot be used; ``reason`` goes into its dead letter's header."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UndecodableRecord(RecordError):
    """Not one of the formats of :mod:`stoplog.wire`."""


class MisroutedRecord(RecordError):
    """In a partition that its client does not hash to."""


class TopicError(StoplogError):
    """A topic is missing, or differs from topics.yaml in a way that would corrupt counting."""


class StateError(StoplogError):
    """Stored state and the log do not belong together; the text says how to go on."""


class TopicRecreated(StateError):
    """The marker was written for a topic of the same name that has been deleted since."""


class OffsetGone(StateError):
    """The log no longer holds (or does not yet hold) the offset the marker points at."""


class Unavailable(StoplogError):
    """No answer in time."""
