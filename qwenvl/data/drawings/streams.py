"""Training documents made of fetched drawings: document number `index` is a pure function of (seed, index).

names      a drawing on some ground, and what it is called as its caption       stage 1, and the naming of nouns before
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray

from qwenvl.data.drawings.collection import Drawing, opened
from qwenvl.data.drawings.poses import posed
from qwenvl.data.formats import Example
from qwenvl.data.records import Caption
from qwenvl.data.stream.order import Order
from qwenvl.data.tasks import example_of
from qwenvl.data.toy.worlds import Dice
from qwenvl.markup import Image
from qwenvl.tokenizer import Tokenizer

SIZE = 112
"""Pixels a side of a drawing alone."""

CHINESE = 0.4
"""Share of the captions that are Chinese, where a drawing has a name in both languages."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which drawings, in which order."""

    folder: Path
    """What `qwenvl data fetch drawings` has filled."""
    licences: str
    """One of `collection.LICENCES`."""
    seed: int


@lru_cache(maxsize=4)
def _training(folder: Path, licences: str) -> Sequence[Drawing]:
    drawings = opened(folder).training(licences)
    if not drawings:
        raise ValueError(f"{folder} holds no drawing that may be trained on; fetch more sets into it.")
    return drawings


@lru_cache(maxsize=8)
def _order(size: int, seed: int) -> Order:
    return Order(size, None, "drawings", seed)


def training(place: Place) -> Sequence[Drawing]:
    """All drawings of a place. Raises ValueError where there is none."""
    return _training(place.folder, place.licences)


def drawing_at(place: Place, index: int) -> Drawing:
    """The drawing of a document: each once an epoch, in an order of that epoch."""
    drawings = training(place)
    _, number = _order(len(drawings), place.seed)(index)
    return drawings[number]


def image_of(place: Place, index: int, size: int = SIZE) -> UInt8[ndarray, "size size 3"]:
    """The drawing of a document as it stands there."""
    drawing = drawing_at(place, index)
    return posed(drawing.image(), Dice("pose", place.seed, index), size, name=drawing.en)


def names_document(place: Place, tokenizer: Tokenizer, queries: int, index: int) -> Example:
    """A drawing and what it is called, in one of its languages (format 1)."""
    drawing = drawing_at(place, index)
    chinese = drawing.zh and (not drawing.en or Dice("language", place.seed, index).chance(CHINESE))
    record = Caption(
        image=Image(image_of(place, index)),
        text=drawing.zh if chinese else drawing.en,
        language="zh" if chinese else "en",
        source=drawing.source,
    )
    return example_of(record, tokenizer, queries)


SOURCES: Mapping[str, Callable[[Place, Tokenizer, int, int], Example]] = {"names": names_document}
"""Sources by name: functions of (place, tokenizer, queries, number)."""


def shards(place: Place) -> Mapping[str, tuple[int, int]]:
    """The index of the drawings: its bytes and how many are trained on, which must stay for a run to go on."""
    index = place.folder / "index.jsonl"
    return {str(index): (index.stat().st_size, len(training(place)))}
