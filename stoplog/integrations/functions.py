"""Limit the calls of a function: ``@limit("5/minute", limiter=limiter, key=...)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, TypeVar, cast

from stoplog.client.blocking import BlockingLimiter
from stoplog.client.fail_open import OnUnavailable, fails_closed
from stoplog.client.limiter import Limiter
from stoplog.errors import InvalidInput, LimitExceeded
from stoplog.policy import check_cost, check_id, parse_policy, plan_name, usable_id

F = TypeVar("F", bound=Callable[..., Any])


def limit(
    limits: str | Sequence[str],
    *,
    limiter: Limiter | BlockingLimiter,
    key: Callable[..., str | None] | str,
    cost: int = 1,
    resource: str | None = None,
    on_unavailable: OnUnavailable = "allow",
) -> Callable[[F], F]:
    """Return a decorator that limits the calls of a function, for each client.

    ::

        @limit("5/minute", limiter=limiter, key=lambda user, text: user)
        async def send(user: str, text: str) -> None: ...

    The limits need no administrator: they are in the name of the check's plan, such as ``=5/minute``. Limits
    that a client has of its own come first. The first call starts the limiter, if nothing else has.

    Args:
        limits: One limit or several, as ``stoplog limits set`` takes them. Each needs a window.
        limiter: A :class:`~stoplog.Limiter` for an async function, a :class:`~stoplog.BlockingLimiter` for
            any other.
        key: Returns the client from the arguments of a call; ``None`` if the call is not limited. Or one
            client for all calls.
        cost: Requests to charge for each call.
        resource: Name under which the calls are counted. By default, the qualified name of the function.
        on_unavailable: ``deny`` makes a call fail closed if the store does not decide it.

    Raises:
        InvalidInput: An argument is invalid.
        LimitExceeded: From a call that is denied. The function did not run.
        TypeError: The limiter does not suit the function.
        UpgradeFirst: From a call: a worker of an older release is alive, which cannot read such limits.
    """
    plan = plan_name(parse_policy(limits, "limits"))
    check_id(plan, "limits")
    check_cost(cost)
    fails_closed(on_unavailable)
    if not callable(key) and not isinstance(key, str):
        raise InvalidInput("key", "neither a function nor text", "use a function of the call's arguments")

    def client_of(args: Any, kwargs: Any) -> str | None:
        found = key(*args, **kwargs) if callable(key) else key
        return None if found is None else usable_id(found)

    def decorate(function: F) -> F:
        name = usable_id(resource or f"{function.__module__}.{function.__qualname__}")

        if iscoroutinefunction(function):
            if not isinstance(limiter, Limiter):
                raise TypeError(f"{name} is async: give a Limiter")

            @wraps(function)
            async def limited_async(*args: Any, **kwargs: Any) -> Any:
                client = client_of(args, kwargs)
                if client is not None:
                    answer = await limiter.check(
                        client, cost, plan=plan, resource=name, on_unavailable=on_unavailable
                    )
                    if not answer.allowed:
                        raise LimitExceeded(name, answer)
                return await function(*args, **kwargs)

            limiter.start_on_first_use()
            return cast(F, limited_async)

        if not isinstance(limiter, BlockingLimiter):
            raise TypeError(f"{name} is not async: give a BlockingLimiter")

        @wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            client = client_of(args, kwargs)
            if client is not None:
                answer = limiter.check(client, cost, plan=plan, resource=name, on_unavailable=on_unavailable)
                if not answer.allowed:
                    raise LimitExceeded(name, answer)
            return function(*args, **kwargs)

        limiter.start_on_first_use()
        return cast(F, limited)

    return decorate
