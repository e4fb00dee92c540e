"""The drawings of a fetched folder by number: what they are called, and their pixels with transparency.

Training sees those alone that `splits` leaves to it and, unless asked otherwise, those under licences that let a model
made of them go under its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image as pillow

from qwenvl import images
from qwenvl.data.drawings.names import Region
from qwenvl.data.drawings.splits import is_held_out, split
from qwenvl.data.stream.index import sample_index
from qwenvl.data.tars import name_and_suffix, skim_tar
from qwenvl.parsing import json_lines

PERMISSIVE = frozenset({"MIT", "Apache-2.0", "ISC", "CC0-1.0", "PD", "CC-BY-3.0", "CC-BY-4.0"})
"""Licences that ask for attribution at most."""

LICENCES = ("permissive", "any")
"""What training may be asked to read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """One drawing and what was said of it."""

    source: str
    key: str
    en: str
    """Its English name; empty where it has none."""
    zh: str
    keywords: tuple[str, ...]
    keywords_zh: tuple[str, ...]
    kind: str
    licence: str
    regions: tuple[Region, ...]
    """Of a map."""
    shard: Path
    first: int
    """First byte of its sample in the shard,"""
    length: int
    """and how many it takes."""

    @property
    def name(self) -> str:
        """What no other drawing is called: `noto/frog`."""
        return f"{self.source}/{self.key}"

    def image(self) -> pillow.Image:
        """Its pixels, RGBA. Raises ValueError where the shard does not hold it any more."""
        for member in skim_tar(self.shard, self.first, self.first + self.length):
            if member.damage is None and name_and_suffix(member.name) == (self.key, "png"):
                with self.shard.open("rb") as file:
                    file.seek(member.first)
                    data = file.read(member.size)
                with images.opened(data, ("PNG",)) as image:
                    return image.convert("RGBA")
        raise ValueError(f"{self.shard} has no drawing {self.key} any more; fetch it again.")


class Collection:
    """Everything in a folder that `qwenvl data fetch drawings` filled."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError for a folder without drawings."""
        self.folder = folder
        if not (folder / "index.jsonl").is_file():
            raise ValueError(
                f"{folder} holds no fetched drawings; fill it: qwenvl data fetch drawings --only npm --out {folder}"
            )
        self.drawings: Sequence[Drawing] = tuple(self._read())

    def _read(self) -> Iterator[Drawing]:
        places: dict[str, Iterator[list[int]]] = {}
        for _, row in json_lines(self.folder / "index.jsonl"):
            assert isinstance(row, dict)
            shard = self.folder / row["shard"]
            if row["shard"] not in places:
                places[row["shard"]] = iter(sample_index(shard).tolist())
            first, length = next(places[row["shard"]])
            yield Drawing(
                source=row["source"], key=row["key"], en=row.get("en", ""), zh=row.get("zh", ""),
                keywords=tuple(row.get("keywords", ())), keywords_zh=tuple(row.get("keywords_zh", ())),
                kind=row["kind"], licence=row["licence"], shard=shard, first=first, length=length,
                regions=tuple(Region(each["en"], each["zh"], tuple(each["box"])) for each in row.get("regions", ())),
            )  # fmt: skip

    def training(self, licences: str = "permissive") -> Sequence[Drawing]:
        """What may be trained on."""
        return [
            each
            for each in self.drawings
            if not is_held_out(each.source, each.key) and (licences == "any" or each.licence in PERMISSIVE)
        ]

    def held_out(self, name: str) -> Sequence[tuple[Drawing, str]]:
        """The drawings of a split that are here, each with the id of the noun that it shows."""
        wanted = split(name)
        return [(each, wanted[at]) for each in self.drawings if (at := (each.source, each.key)) in wanted]


def opened(folder: Path) -> Collection:
    """The collection of a folder, read once for as long as its index does not change. Raises ValueError."""
    index = folder / "index.jsonl"
    return _opened(folder, index.stat().st_mtime_ns if index.exists() else 0)


@lru_cache(maxsize=4)
def _opened(folder: Path, stamp: int) -> Collection:
    return Collection(folder)
