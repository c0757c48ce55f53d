"""The policies of one partition, each with its history since the marker.

A replay decides a check again with the policy that was in force at the check's position. So a stored policy
is a list of changes (:class:`~stoplog_worker.algorithm.state_codec.PolicyChange`), as far back as a replay
may begin.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from stoplog.policy import Limit, Policy, plan_policy
from stoplog.wire.checks import Check
from stoplog.wire.limit_updates import ENABLE_HOLDS, Update, UpdateKey
from stoplog_worker.algorithm.state_codec import (
    BUILT_IN,
    NEVER_SET,
    PolicyChange,
    State,
    StateReader,
    decode_history,
    encode_history,
    encode_policy_key,
)

_NO_CHANGE: Final = PolicyChange(-1, -1, None)


class _InForce(NamedTuple):
    """A policy that is in force, in the parts that a state keeps.

    Taking a policy apart costs more than the rest of :meth:`PolicyHistory.resolve`. So what is in force for
    many clients is kept in this form.
    """

    limits: tuple[Limit, ...]
    in_flight: int | None
    refundable: bool
    version: int

    @classmethod
    def of(cls, policy: Policy, version: int) -> _InForce:
        return cls(policy.windows, policy.in_flight, policy.refundable, version)


class PolicyHistory:
    """The policies of one partition.

    Args:
        reader: The stored policies.
        default: The built-in default policy, in force where nothing is configured.
    """

    def __init__(self, reader: StateReader, default: Policy) -> None:
        self._reader = reader
        self._default = _InForce.of(default, BUILT_IN)
        self.epoch = 0
        """Incremented by each update: a policy resolved in an earlier epoch must be resolved again."""
        self.cached: dict[bytes, list[PolicyChange]] = {}
        """Histories in memory, by stored key."""
        self.dirty: dict[bytes, int] = {}
        """The histories to be written: the position of each by its stored key."""
        self._shared: dict[tuple[str, str], _InForce | None] = {}
        """Policies of plans and the default resolved in this epoch, by plan and resource."""

    def resolve(self, state: State, check: Check, position: int) -> None:
        """Set the policy that applies to *check* at *position* in *state*.

        The first one in force is taken, of: the client's, the plan's, the default's. A check with a resource
        first looks for policies of that resource, then for those without a resource. A plan without a policy
        may state limits in its name (:func:`stoplog.policy.plan_policy`). The built-in default comes last.

        Args:
            state: Its ``limits``, ``in_flight``, ``refundable``, ``version``, ``plan`` and ``epoch`` are set.
            check: The check.
            position: The check's position.
        """
        state.epoch, state.plan, state.shaped = self.epoch, check.plan, False
        for resource in (check.resource, "") if check.resource else ("",):
            found = None
            if state.own_limits or check.resource:
                found = _in_force(self._history_of(UpdateKey("client", check.client, resource)), position)
            if found is None:
                found = self._resolve_shared(check.plan, resource, position)
            if found is not None:
                break
        else:
            found = self._default
        state.limits, state.in_flight, state.refundable, state.version = found

    def holds_enabled(self, position: int) -> bool:
        """Return whether the log contains the update that enables holds, before *position*."""
        key = (ENABLE_HOLDS.kind, ENABLE_HOLDS.id)
        if key not in self._shared:
            self._shared[key] = _in_force(self._history_of(ENABLE_HOLDS), position)
        return self._shared[key] is not None

    def source_of(self, check: Check, position: int) -> UpdateKey | None:
        """Return the key of the policy that applies to *check*; ``None`` for the built-in default."""
        for resource in (check.resource, "") if check.resource else ("",):
            for kind, id_ in (("client", check.client), ("plan", check.plan), ("default", "")):
                key = UpdateKey(kind, id_, resource)
                if (id_ or kind == "default") and _in_force(self._history_of(key), position) is not None:
                    return key
                if kind == "plan" and not resource and plan_policy(id_) is not None:
                    return key
        return None

    def _resolve_shared(self, plan: str, resource: str, position: int) -> _InForce | None:
        """Return what is in force for clients without own limits: the plan's policy, else the default's."""
        key = (plan, resource)
        if key not in self._shared:
            self._shared[key] = self._find_shared(plan, resource, position)
        return self._shared[key]

    def _find_shared(self, plan: str, resource: str, position: int) -> _InForce | None:
        if plan:
            if (
                found := _in_force(self._history_of(UpdateKey("plan", plan, resource)), position)
            ) is not None:
                return found
            # After the client's own limits without a resource, which come first.
            if not resource and (stated := plan_policy(plan)) is not None:
                return _InForce.of(stated, BUILT_IN)
        return _in_force(self._history_of(UpdateKey("default", "", resource)), position)

    def begin_epoch(self) -> None:
        """Make every state resolve its policy again."""
        self.epoch += 1
        self._shared.clear()

    def add(self, update: Update, position: int, replay_from: int) -> None:
        """Put the policy of *update* in force from *position* on, unless a later change of it is known.

        Args:
            update: Sets or deletes a policy.
            position: The update's position in ``checks``.
            replay_from: No replay begins before this position, so all changes before it but the last are
                dropped.
        """
        key = encode_policy_key(update.key)
        history = self._stored_history(key)
        last = history[-1] if history else _NO_CHANGE
        # Two gateways may change a plan at once, and partitions may receive their updates in different
        # orders. The update that is later in the plan's home partition wins in every partition.
        outdated = 0 <= update.order < last.order
        if last.version < update.version and not outdated:
            # `<`: a replay that begins with history[1] must still know what it replaced.
            while len(history) > 1 and history[1].position < replay_from:
                del history[0]
            history.append(PolicyChange(position, update.version, update.policy, update.order))
            self.cached[key] = history
            self.dirty[key] = position

    def replaced_by(self, update: Update) -> PolicyChange | None:
        """Return the change that was in force before *update*, which was added; ``None`` if none was."""
        earlier = [change for change in self._history_of(update.key) if change.version < update.version]
        return earlier[-1] if earlier and earlier[-1].policy is not None else None

    def last_change(self, key: UpdateKey) -> PolicyChange | None:
        """Return the last change of the policy under *key*; ``None`` if there was none."""
        history = self._history_of(key)
        return history[-1] if history else None

    def _history_of(self, key: UpdateKey) -> list[PolicyChange]:
        return self._stored_history(encode_policy_key(key))

    def _stored_history(self, key: bytes) -> list[PolicyChange]:
        history = self.cached.get(key)
        if history is None:
            [value] = self._reader.policies([key])
            if value is None:
                return []
            history = self.cached[key] = decode_history(value)
        return history

    def take_dirty(self) -> list[tuple[bytes, bytes]]:
        """Return the stored key and the encoded history of each policy changed since the last call."""
        entries = [(key, encode_history(self.cached[key], at)) for key, at in self.dirty.items()]
        self.dirty.clear()
        return entries

    def rewrite(self, keys: Iterable[bytes], as_of: int) -> None:
        """Make the histories of the stored *keys* dirty, with the position *as_of* if they are not beyond.

        A key without a history gets one in which nothing was ever in force.
        """
        for key in keys:
            if key.count(b"\0") == 2:
                history = self._stored_history(key) or [NEVER_SET]
                self.cached[key] = history
                self.dirty[key] = max(history[-1].position, as_of)

    def evict(self, keep: int) -> None:
        """Drop clean histories if more than *keep* are in memory."""
        if len(self.cached) > keep:
            for key in [key for key in self.cached if key not in self.dirty]:
                del self.cached[key]
        if len(self._shared) > keep:
            self._shared.clear()


def _in_force(history: list[PolicyChange], position: int) -> _InForce | None:
    """Return what is in force at *position*; ``None`` if there was nothing, or it was deleted."""
    for change in reversed(history):
        if change.position <= position:
            return None if change.policy is None else _InForce.of(change.policy, change.version)
    return None
