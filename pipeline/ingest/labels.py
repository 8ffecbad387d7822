"""Labels and splits of samples: by folder level, regex, table, container; by hash of the id."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import blake2b

from pipeline.ingest.tables import read_rows
from pipeline.ingest.target import open_parent
from schemas.base import Location
from schemas.run import LabelRule, SplitRule


def folders(sample_id: str) -> list[str]:
    """The folders of a sample id, from the top; a container itself is none, those in it are."""
    outer, _, inner = sample_id.partition("::")
    return [*outer.split("/")[:-1], *inner.split("/")[:-1]]


@dataclass
class Levels:
    """Finds the shallowest folder level with more than one value, holding one value a level."""

    first: list[str] = field(default_factory=list)
    several: list[bool] = field(default_factory=list)

    def see(self, sample_id: str) -> None:
        for level, name in enumerate(folders(sample_id)):
            if level == len(self.first):
                self.first.append(name)
                self.several.append(False)
            elif name != self.first[level]:
                self.several[level] = True

    def shallowest(self) -> int | None:
        return next((level for level, more in enumerate(self.several) if more), None)


class Labeler:
    """Gives each sample its label by the dataset's rule; without one: as its container or table
    says, else by the folder level found."""

    def __init__(self, rule: LabelRule, level: int | None):
        self.rule, self.level = rule, level
        self.regex = re.compile(rule.regex) if rule.regex else None
        self.table = read_labels(rule.table) if rule.table else None

    def label(self, sample_id: str, given: str | None) -> str | None:
        if self.regex:
            match = self.regex.search(sample_id)
            return match.group(1 if self.regex.groups else 0) if match else None
        if self.table is not None:
            return self.table.get(sample_id)
        if self.rule.level is None and given is not None:
            return given
        level = self.rule.level if self.rule.level is not None else self.level
        names = folders(sample_id)
        if level is None or not -len(names) <= level < len(names):
            return None
        return names[level]


def read_labels(location: Location) -> dict[str, str]:
    """A table of labels (columns `id`, `label`), whole."""
    source, key = open_parent(location)
    if source.stat(key) is None:
        raise FileNotFoundError(f"dataset.label.table {location.url}: there is no such file")
    rows = read_rows(source, key, {"id": "id", "label": "label"}, needed=("id", "label"))
    return {row["id"]: row["label"] for row in rows if row["id"] and row["label"]}


def split_of(sample_id: str, rule: SplitRule, seed: int) -> str:
    """train, val or test: a function of the id and the seed, in the shares of the rule."""
    value = blake2b(f"{seed}/split/{sample_id}".encode(), digest_size=8).digest()
    share = int.from_bytes(value, "big") / 2**64
    if share < rule.train:
        return "train"
    if share < rule.train + rule.val or rule.test == 0:
        return "val" if rule.val > 0 else "train"
    return "test"
