from __future__ import annotations

import pytest
from stoplog_worker.partition.changelog_repair import Overtaken

from stoplog import errors
from stoplog.errors import InvalidInput, InvalidLimit, RecordError, StoplogError, UndecodableRecord


def drawn() -> dict[str, str | None]:
    """Return each class that the docstring draws, and its base class there."""
    parents: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        bare = line.lstrip(" │├└─")
        if not bare or not bare.split()[0].isidentifier() or not line.startswith("    "):
            continue
        depth = (len(line) - len(bare) - 4) // 4
        name = bare.split()[0]
        del above[depth:]
        parents[name] = above[-1] if above else None
        above.append(name)
    return parents


def test_tree_in_the_docstring_equals_the_classes() -> None:
    real = {
        name: None if kind is StoplogError else kind.__mro__[1].__name__
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert drawn() == real


def test_workers_own_error_is_a_state_error() -> None:
    assert Overtaken.__base__ is errors.StateError


def test_invalid_input_states_field_problem_and_remedy() -> None:
    error = InvalidLimit("limits[1]", "a negative limit", "0 blocks")
    assert str(error) == "limits[1]: a negative limit; 0 blocks"
    assert (error.field, error.problem, error.remedy) == ("limits[1]", "a negative limit", "0 blocks")
    assert isinstance(error, InvalidInput)
    assert (str(error.within("[3].")), type(error.within(""))) == (f"[3].{error}", InvalidLimit)


def test_record_error_has_a_reason() -> None:
    with pytest.raises(RecordError) as caught:
        raise UndecodableRecord("why")
    assert caught.value.reason == str(caught.value) == "why"
