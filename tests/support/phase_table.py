"""Read the table of edges in the docstring of an enum of phases, to compare it with the code."""

from __future__ import annotations

from enum import Enum


def edges_of(phases: type[Enum]) -> set[tuple[Enum | str, Enum]]:
    """Return the edges that the second table in the docstring of *phases* states; ``any`` stays a string."""
    lines = (phases.__doc__ or "").splitlines()
    header = next(index for index, line in enumerate(lines) if line.split()[:3] == ["from", "to", "when"])
    edges: set[tuple[Enum | str, Enum]] = set()
    for line in lines[header + 2 :]:
        if line.strip().startswith("="):
            break
        source, target = line.split()[:2]
        edges.add((source if source == "any" else phases[source], phases[target]))
    return edges
