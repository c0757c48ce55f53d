"""Access rights in Kafka: for each role of a program, the operations that it needs, and nothing else.

Kafka lets a principal describe a topic that it may read, write, alter or delete, so :func:`grants` states
*Describe* only where none of these is granted. No role needs an operation on the cluster or a transactional
id: a broker of version 2.8 or later lets every principal that may write to a topic be an idempotent producer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from stoplog.lanes import app_id, changelogs_of
from stoplog.topics import (
    AUDIT,
    CHECKS,
    COUNTERS_CHANGELOG,
    DEAD_LETTERS,
    NODES,
    POLICIES_CHANGELOG,
    REPLIES,
    UPDATES,
)

READ: Final = "Read"
WRITE: Final = "Write"
CREATE: Final = "Create"
ALTER: Final = "Alter"
DELETE: Final = "Delete"
DESCRIBE: Final = "Describe"
DESCRIBE_CONFIGS: Final = "DescribeConfigs"

ROLES: Final = {
    "gateway": "serves HTTP and Envoy: checks, and changes of limits",
    "sdk": "a program that checks with the SDK",
    "publisher": "a program that writes checks to Kafka by itself, and may read the replies",
    "admin": "a program that checks and changes limits with the SDK; records the number of partitions",
    "worker": "decides checks",
    "operator": "`stoplog topics`, except `stoplog topics grow`, and `stoplog verify`",
    "grower": "`stoplog topics grow`; take its rights away when the command has ended",
}
"""Each role, and what its programs do."""

_TOPICS: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    CHECKS: {
        "gateway": (WRITE,),
        "sdk": (WRITE,),
        "publisher": (WRITE,),
        "admin": (WRITE,),
        "worker": (READ, WRITE),  # it relays limit updates
        "operator": (READ,),
        "grower": (READ, WRITE, ALTER),
    },
    UPDATES: {
        "gateway": (READ, WRITE),
        "sdk": (READ,),
        "admin": (READ, WRITE),
        "worker": (READ,),
        "operator": (READ,),  # the number of partitions
        "grower": (READ, WRITE, ALTER),
    },
    REPLIES: {
        "gateway": (READ,),
        "sdk": (READ,),
        "publisher": (READ,),
        "admin": (READ,),
        "worker": (WRITE,),
        "operator": (READ,),
    },
    NODES: {
        "gateway": (READ, WRITE),
        "sdk": (READ, WRITE),
        "admin": (READ, WRITE),
        "worker": (READ, WRITE),
        "grower": (READ,),  # it waits until nobody runs
    },
    DEAD_LETTERS: {"worker": (WRITE,), "operator": (READ,)},
    AUDIT: {
        "gateway": (READ,),
        "admin": (READ,),
        "worker": (WRITE,),
        "operator": (READ,),
        "grower": (ALTER,),
    },
    COUNTERS_CHANGELOG: {
        "worker": (READ, WRITE, DELETE),  # DELETE: of expired records
        "operator": (READ,),
        "grower": (READ, WRITE, ALTER),
    },
    POLICIES_CHANGELOG: {
        "worker": (READ, WRITE),
        "operator": (READ,),
        "grower": (READ, WRITE, ALTER),
    },
}
"""The operations of each role on a topic and its records. A lane's changelogs are like the default lane's."""

_EVERY_TOPIC: Final[Mapping[str, tuple[str, ...]]] = {
    "admin": (
        DESCRIBE_CONFIGS,
    ),  # `stoplog topics create` compares the topics before it records their number
    "worker": (DESCRIBE_CONFIGS,),  # it compares the topics with topics.yaml when it starts
    "operator": (CREATE, DESCRIBE_CONFIGS),
}
"""The operations of each role on every topic, besides those on its records."""


_NAMED_GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "gateway": ("stoplog-gateway",),
    "sdk": ("stoplog-gateway",),
    "admin": ("stoplog-gateway",),
    "worker": ("stoplog-gateway", "stoplog-reader"),
    "operator": ("stoplog-gateway", "stoplog-reader"),
    "grower": ("stoplog-gateway", "stoplog-reader"),
}
"""Groups that the consumers of each role name without joining them. librdkafka looks up the coordinator of
each, and fails every read if it must not."""


class Grant(NamedTuple):
    """Operations on one resource.

    Attributes:
        kind: ``topic`` or ``group``.
        name: Name of the topic, or id of the consumer group.
        operations: Kafka's names of the operations.
    """

    kind: str
    name: str
    operations: tuple[str, ...]


def grants(role: str, topics: Iterable[str], lanes: Iterable[str]) -> list[Grant]:
    """Return everything that *role* needs.

    Args:
        role: One of :data:`ROLES`.
        topics: Names of all topics of topics.yaml, and of the changelogs of *lanes*.
        lanes: The lanes; the default one is the empty text.

    >>> grants("publisher", ["checks", "nodes"], [""])
    [Grant(kind='topic', name='checks', operations=('Write',))]
    """
    lanes = list(lanes)
    like = {own: default for lane in lanes for default, own in changelogs_of(lane).items()}
    found = []
    for topic in topics:
        own = _TOPICS.get(like.get(topic, topic), {}).get(role, ())
        every = _EVERY_TOPIC.get(role, ())
        describe = (DESCRIBE,) if every and not own else ()
        if operations := (*own, *describe, *every):
            found.append(Grant("topic", topic, operations))
    return [*found, *_groups(role, lanes)]


def _groups(role: str, lanes: list[str]) -> list[Grant]:
    """Return the consumer groups of *role*."""
    joined = [group for lane in lanes for group in (app_id(lane), f"{app_id(lane)}-owner")]
    return [
        *(Grant("group", group, (READ,)) for group in (joined if role == "worker" else ())),
        *(Grant("group", group, (DESCRIBE,)) for group in _NAMED_GROUPS.get(role, ())),
    ]
