"""Where documents come from and how often (Tables 2 and 3): rows of paths and weights, in a stage or a file of its own.

[[2-multitask]]                      # name of the stage
paths = ["vqav2.jsonl", "gqa/*.tar"] # seen from this file; data sets of a row count by their size
weight = 3.6                         # share of the row, in any unit
format = "question"                  # of records that can be told in two: refer or describe
images = "/data/coco"                # where paths of images may lead, beside the folder of each shard

A row may also be a source of the toy world, which is made while it is read: paths = ["toy:tasks"] (`data.toy.streams`).
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
from qwenvl.data.faults import Unusable
from qwenvl.data.formats import Example
from qwenvl.data.records import Skipped
from qwenvl.data.shards import find_shards, kind_of
from qwenvl.data.stream.index import sample_index
from qwenvl.data.stream.order import Draw, Order
from qwenvl.data.stream.samples import Sample, read_sample
from qwenvl.data.tasks import Format
from qwenvl.data.toy import streams as toy
from qwenvl.data.toy.worlds import Dice
from qwenvl.tokenizer import Tokenizer

TOY = "toy:"
"""How the name of a source of the toy world begins, where paths stand."""

TASKS: tuple[str, ...] = (*get_args(Format), *toy.SOURCES)
"""Every `Document.task` there is."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One row of a mixture."""

    paths: tuple[str, ...]
    """Shards, folders of shards, or patterns of shards; or one source of the toy world, `toy:` and its name."""
    weight: float = 1.0
    """Share of the documents, in any unit."""
    format: str = ""
    """Format that records are told in, where their kind has two; by default the first."""
    images: str = ""
    """Folder below which the paths of images may lead, beside the folder of each shard."""

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
        if not 0 < self.weight < math.inf:
            raise ValueError(f"the weight of {self.paths[0]} is {self.weight:g}; expected more than 0.")
        if any(path.startswith(TOY) for path in self.paths):
            self._require_toy()

    def _require_toy(self) -> None:
        if len(self.paths) > 1 or self.format or self.images:
            raise ValueError(
                f"the row of {self.paths[0]} says more than its weight; a source of the toy world has no size, format "
                "or folder: give it a row of its own."
            )
        if self.toy not in toy.SOURCES:
            known = ", ".join(f"{TOY}{name}" for name in toy.SOURCES)
            raise ValueError(
                f"there is no source {self.paths[0]!r} of the toy world; expected one of {known}."
            )

    @property
    def toy(self) -> str:
        """Name of its source of the toy world; empty where it reads shards."""
        return self.paths[0].removeprefix(TOY) if self.paths[0].startswith(TOY) else ""


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
    """Format of the record, "dialogue", or the toy source: rows of interleaved documents hold one task."""
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
        rows = [row for row in self.sources if not row.toy]
        return [Source(row, "order", self.seed, number) for number, row in enumerate(rows)]

    @cached_property
    def _toys(self) -> Mapping[str, float]:
        """Weights of the sources of the toy world, which take one place together in the draw."""
        shares: dict[str, float] = {}
        for row in self.sources:
            if row.toy:
                shares[row.toy] = shares.get(row.toy, 0.0) + row.weight
        return shares

    @cached_property
    def _draw(self) -> Draw:
        toys = [sum(self._toys.values())] if self._toys else []
        return Draw([source.config.weight for source in self._opened] + toys, self.seed)

    def __call__(self, position: int) -> Document:
        """The document of a position, or why there is none."""
        if position < self.start:
            assert self.curriculum is not None
            return self.curriculum(position)
        if not self._opened:
            return self._toy(position)
        source, drawn = self._draw(position - self.start)
        return self._toy(position) if source == len(self._opened) else self._read(source, drawn)

    def _toy(self, position: int) -> Document:
        """A document of the toy world; which source makes it is drawn by weight, named by the seed and the position."""
        left = Dice("source", self.seed, position).share() * sum(self._toys.values())
        *others, name = self._toys
        for other in others:
            left -= self._toys[other]
            if left < 0:
                name = other
                break
        world = toy.Vocabulary(self.tokenizer, self.queries, self.seed)
        return Document(name, toy.SOURCES[name](world, position))

    def _read(self, source: int, drawn: int) -> Document:
        """The document that comes after `drawn` others of a source of shards."""
        opened = self._opened[source]
        epoch, shard, first, second = opened.place(drawn)
        where = f"{shard.name}, {first}"
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
        return {
            **before,
            **{
                str(shard): (shard.stat().st_size, size)
                for source in self._opened
                for shard, size in zip(source.shards, source.sizes, strict=True)
            },
        }
