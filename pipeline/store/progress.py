"""What of a store is done and what is left, from fresh listings of the records."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.storage import Objects
from pipeline.store import keys
from pipeline.store.records import all_generations, is_published, read_commit
from pipeline.store.write import staged_complete
from schemas.store import Plan


@dataclass(frozen=True)
class Progress:
    """The state of every unit."""

    to_fit: list[tuple[int, int]]
    """(unit, generation to write) of units without a usable commit, and of reopened ones."""
    to_publish: list[tuple[int, int]]
    """(unit, generation) of units that are committed but not published."""
    published: dict[int, int]
    """Unit -> generation of the units that are done."""

    @property
    def complete(self) -> bool:
        return not self.to_fit and not self.to_publish


def progress(objects: Objects, plan: Plan) -> Progress:
    """Looks up every unit: two listings, and a few reads for each unit that is in between.

    A record that does not match its checksum counts as none, but keeps its generation's number.
    """
    commits = all_generations(objects, keys.COMMITS)
    published = all_generations(objects, keys.PUBLISHED)
    reopened = all_generations(objects, keys.REOPENED)
    state = Progress([], [], {})
    for unit in range(plan.units):
        known = commits.get(unit, {})
        top = max(known, default=-1)
        again = max(reopened.get(unit, {}), default=-1)
        if again > top:
            state.to_fit.append((unit, again))
        elif top < 0:
            state.to_fit.append((unit, 0))
        elif known[top] and published.get(unit, {}).get(top):
            state.published[unit] = top
        else:
            _unpublished(objects, state, unit, top)
    return state


def _unpublished(objects: Objects, state: Progress, unit: int, generation: int) -> None:
    """Sorts in a unit whose newest record has no marker beside it (or is empty)."""
    commit = read_commit(objects, unit, generation)
    if commit is None:
        state.to_fit.append((unit, generation + 1))
    elif is_published(objects, unit, generation):  # published since the listing
        state.published[unit] = generation
    elif staged_complete(objects, commit):
        state.to_publish.append((unit, generation))
    else:
        state.to_fit.append((unit, generation + 1))
