"""Where documents come from and how often (Tables 2 and 3): rows of paths and weights, in a stage or a file of its own.

[[2-multitask]]                      # name of the stage
paths = ["vqav2.jsonl", "gqa/*.tar"] # seen from this file; data sets of a row count by their size
weight = 3.6                         # share of the row, in any unit
format = "question"                  # of records that can be told in two: refer or describe
images = "/data/coco"                # where paths of images may lead, beside the folder of each shard

A row may also be a source that is made while it is read: paths = ["toy:tasks"] of the toy world (`data.toy.streams`),
paths = ["drawings:names"] of fetched drawings, which `images` names the folder of (`data.drawings.streams`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from qwenvl.data import layouts
from qwenvl.data.drawings import streams as drawings
from qwenvl.data.drawings.collection import LICENCES
from qwenvl.data.faults import Unusable
from qwenvl.data.formats import Example
from qwenvl.data.records import Skipped
from qwenvl.data.shards import find_shards, kind_of
from qwenvl.data.stream.index import sample_index
from qwenvl.data.stream.order import Draw, Order
from qwenvl.data.stream.samples import Sample, place_of, read_sample
from qwenvl.data.tasks import Format
from qwenvl.data.toy import streams as toy
from qwenvl.data.toy.worlds import Dice
from qwenvl.tokenizer import Tokenizer

MADE: Mapping[str, Mapping[str, object]] = {"toy": toy.SOURCES, "drawings": drawings.SOURCES}
"""What is made while it is read: where paths stand, its name is `toy:` or `drawings:` and a source of it."""

FETCHED = "drawings"
"""Folder of the drawings where a row names none: that of `qwenvl data fetch drawings` without --out."""

TASKS: tuple[str, ...] = (*get_args(Format), *(name for made in MADE.values() for name in made))
"""Every `Document.task` there is."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One row of a mixture."""

    paths: tuple[str, ...]
    """Shards, folders of shards, or patterns of shards; or one source that is made, such as `toy:tasks`."""
    weight: float = 1.0
    """Share of the documents, in any unit."""
    format: str = ""
    """Format that records are told in, where their kind has two; by default the first."""
    images: str = ""
    """Folder below which the paths of images may lead, beside the folder of each shard; of drawings, their folder."""
    licences: str = "permissive"
    """Which drawings are read: those under licences that ask for attribution at most, or `any`."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("a row of a mixture names no paths; give shards, or remove the row.")
        if self.format and self.format not in get_args(Format):
            raise ValueError(
                f"the format of {self.paths[0]} is {self.format!r}; expected one of {', '.join(get_args(Format))}."
            )
        if self.images and not Path(self.images).is_dir():
            raise ValueError(
                f"images of {self.paths[0]} is {self.images!r}, which is no folder; name the images' folder."
            )
        if self.licences not in LICENCES or (self.licences != "permissive" and self.world != "drawings"):
            raise ValueError(
                f"licences of {self.paths[0]} is {self.licences!r}; expected one of {', '.join(LICENCES)}, in a row of "
                "drawings."
            )
        if not 0 < self.weight < math.inf:
            raise ValueError(f"the weight of {self.paths[0]} is {self.weight:g}; expected more than 0.")
        if any(is_made(path) for path in self.paths):
            self._require_made()

    def _require_made(self) -> None:
        if len(self.paths) > 1 or self.format or (self.images and self.world == "toy"):
            raise ValueError(
                f"the row of {self.paths[0]} says more than its weight; a source that is made has no size or format, "
                "and the toy world no folder: give it a row of its own."
            )
        if self.made not in MADE[self.world]:
            known = ", ".join(f"{self.world}:{name}" for name in MADE[self.world])
            raise ValueError(f"there is no source {self.paths[0]!r}; expected one of {known}.")

    @property
    def world(self) -> str:
        """Of what it is made while it is read, a key of `MADE`; empty where it reads shards."""
        return self.paths[0].partition(":")[0] if is_made(self.paths[0]) else ""

    @property
    def made(self) -> str:
        """Name of its source that is made; empty where it reads shards."""
        return self.paths[0].partition(":")[2] if self.world else ""

    def place(self, seed: int) -> drawings.Place:
        """The drawings that it reads."""
        return drawings.Place(folder=Path(self.images or FETCHED), licences=self.licences, seed=seed)


def is_made(path: str) -> bool:
    """Whether a path of a row is the name of what is made while it is read."""
    world, colon, _ = path.partition(":")
    return bool(colon) and world in MADE


class Source:
    """The samples of all shards of a row, by number."""

    def __init__(self, config: SourceConfig, *name: object) -> None:
        """`name` names the order of its samples. Raises ValueError where there is no sample."""
        self.config = config
        self.shards = [shard for path in config.paths for shard in find_shards(path)]
        self.sizes = [len(sample_index(shard)) for shard in self.shards]
        self._ends = np.cumsum(self.sizes)
        size = sum(self.sizes)
        if not size:
            raise ValueError(f"no sample in {', '.join(config.paths)}; remove the row or fill its shards.")
        in_groups = any(kind_of(shard) == "parquet" for shard in self.shards)
        self._order = Order(size, self._blocks() if in_groups else None, *name)

    def _blocks(self) -> list[int]:
        blocks = []
        for shard, size in zip(self.shards, self.sizes, strict=True):
            if kind_of(shard) == "parquet" and size:
                blocks += np.bincount(sample_index(shard)[:, 0]).tolist()
            else:
                blocks += [1] * size
        return [block for block in blocks if block]

    def sample(self, shard: Path, first: int, second: int) -> Sample:
        """The sample at a place of a shard. Raises Unusable."""
        root = Path(self.config.images) if self.config.images else None
        return replace(read_sample(shard, first, second), root=root)

    def place(self, drawn: int) -> tuple[int, Path, int, int]:
        """Epoch, shard and place there of the sample that comes after `drawn` others."""
        epoch, number = self._order(drawn)
        at = int(np.searchsorted(self._ends, number, side="right"))
        shard = self.shards[at]
        first, second = _table(shard)[number - (int(self._ends[at]) - self.sizes[at])].tolist()
        return epoch, shard, first, second


@lru_cache(maxsize=256)
def _table(shard: Path) -> NDArray[np.int64]:
    return sample_index(shard)


class Document(NamedTuple):
    """What stands at a position of the stream."""

    task: str
    """Format of the record, "dialogue", or the made source: rows of interleaved documents hold one task."""
    made: Example | Skipped


@dataclass(frozen=True, kw_only=True)
class Stream:
    """All documents of a stage by position, a pure function of (seed, position)."""

    sources: tuple[SourceConfig, ...]
    tokenizer: Tokenizer
    queries: int
    """Visual tokens of an image."""
    longest: int
    """Tokens of a row: longer documents are left out, never cut."""
    seed: int
    start: int = 0
    """Position from which on the sources are read."""
    curriculum: "Stream | None" = None
    """What stands at the positions before."""

    @cached_property
    def _opened(self) -> Sequence[Source]:
        rows = [row for row in self.sources if not row.world]
        return [Source(row, "order", self.seed, number) for number, row in enumerate(rows)]

    @cached_property
    def _made(self) -> Mapping[SourceConfig, float]:
        """Weights of the sources that are made, which take one place together in the draw."""
        shares: dict[SourceConfig, float] = {}
        for row in self.sources:
            if row.world:
                shares[replace(row, weight=1.0)] = shares.get(replace(row, weight=1.0), 0.0) + row.weight
        return shares

    @cached_property
    def _draw(self) -> Draw:
        made = [sum(self._made.values())] if self._made else []
        return Draw([source.config.weight for source in self._opened] + made, self.seed)

    def __call__(self, position: int) -> Document:
        """The document of a position, or why there is none."""
        if position < self.start:
            assert self.curriculum is not None
            return self.curriculum(position)
        if not self._opened:
            return self._make(position)
        source, drawn = self._draw(position - self.start)
        return self._make(position) if source == len(self._opened) else self._read(source, drawn)

    def _make(self, position: int) -> Document:
        """A document that is made; which source makes it is drawn by weight, named by the seed and the position."""
        left = Dice("source", self.seed, position).share() * sum(self._made.values())
        *others, row = self._made
        for other in others:
            left -= self._made[other]
            if left < 0:
                row = other
                break
        if row.world == "toy":
            world = toy.Vocabulary(self.tokenizer, self.queries, self.seed)
            return Document(row.made, toy.SOURCES[row.made](world, position))
        make = drawings.SOURCES[row.made]
        return Document(row.made, make(row.place(self.seed), self.tokenizer, self.queries, position))

    def _read(self, source: int, drawn: int) -> Document:
        """The document that comes after `drawn` others of a source of shards."""
        opened = self._opened[source]
        epoch, shard, first, second = opened.place(drawn)
        where = place_of(shard, first, second)
        try:
            sample = opened.sample(shard, first, second)
            where = sample.where
            found = layouts.read(sample, format=opened.config.format, epoch=epoch)
            made = found.example(self.tokenizer, self.queries)
            if len(made) > self.longest:
                raise Unusable("over-long", f"{len(made)} tokens, {self.longest} fit")
        except Unusable as reason:
            return Document("", Skipped(key=where, kind=reason.kind, detail=reason.detail, source=str(shard)))
        return Document(found.format, made)

    def shards(self) -> Mapping[str, tuple[int, int]]:
        """Every shard with its bytes and samples: what must be the same for a run to go on."""
        before = {} if self.curriculum is None else self.curriculum.shards()
        fetched: dict[str, tuple[int, int]] = {}
        for row in self._made:
            if row.world == "drawings":
                fetched |= drawings.shards(row.place(self.seed))
        return {
            **before,
            **fetched,
            **{
                str(shard): (shard.stat().st_size, size)
                for source in self._opened
                for shard, size in zip(source.shards, source.sizes, strict=True)
            },
        }
