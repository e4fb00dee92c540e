"""What naming by likeness alone comes to: the name of the training drawing that looks most alike.

A model that cannot do better than this has learned nothing that pixels do not say. Two looks: colours of a thumbnail,
and histograms of gradients (HOG), which see outlines and no colour. Drawings are cut out, set on white and made square.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image as pillow

from qwenvl.data.drawings.collection import opened
from qwenvl.data.drawings.poses import cut_out
from qwenvl.data.drawings.scenes import noun_of
from qwenvl.images import WHITE

SIDE = 64
"""Pixels of the square that looks are taken of."""

CELLS, BINS = 8, 9
"""Cells along a side, and directions of gradients in each, opposite ones being one."""


def squared(image: pillow.Image) -> UInt8[np.ndarray, "side side 3"]:
    """The cut-out of a drawing (RGBA) in the middle of a white square."""
    cut = cut_out(image)
    ratio = SIDE / max(cut.size)
    cut = cut.resize(
        (max(1, round(cut.width * ratio)), max(1, round(cut.height * ratio))), pillow.Resampling.BOX
    )
    canvas = pillow.new("RGB", (SIDE, SIDE), WHITE)
    canvas.paste(cut, ((SIDE - cut.width) // 2, (SIDE - cut.height) // 2), cut)
    return np.asarray(canvas)


def colours(square: UInt8[np.ndarray, "side side 3"]) -> Float32[np.ndarray, " features"]:
    """A thumbnail of 16 x 16."""
    small = pillow.fromarray(square).resize((16, 16), pillow.Resampling.BOX)
    return np.asarray(small, np.float32).ravel() / 255


def gradients(square: UInt8[np.ndarray, "side side 3"]) -> Float32[np.ndarray, " features"]:
    """Histograms of gradients of 8 x 8 cells, each cell of length one."""
    grey = square.astype(np.float32).mean(-1) / 255
    down, across = np.gradient(grey)
    strength = np.hypot(down, across)
    direction = (np.arctan2(down, across) % np.pi / np.pi * BINS).astype(int) % BINS
    side = SIDE // CELLS
    rows, columns = np.indices(grey.shape) // side
    bins = np.zeros((CELLS, CELLS, BINS), np.float32)
    np.add.at(bins, (rows, columns, direction), strength)
    bins /= np.linalg.norm(bins, axis=-1, keepdims=True) + 0.1
    return bins.ravel()


LOOKS: Mapping[str, Callable[[UInt8[np.ndarray, "side side 3"]], Float32[np.ndarray, " features"]]] = {
    "nearest on RGB": colours,
    "nearest on HOG": gradients,
}
"""Name -> what is compared."""

BLIND = "blind"
"""Name of the answer that does not look: the noun that most training drawings show."""


class Neighbours:
    """All training drawings of some nouns, by how they look."""

    def __init__(self, folder: Path, among: Collection[str]) -> None:
        """`among` are ids of nouns. Raises ValueError where no training drawing shows one of them."""
        found = [
            (named.id, squared(each.image()))
            for each in opened(folder).training("any")
            if (named := noun_of(each)) is not None and named.id in among
        ]
        if not found:
            raise ValueError(f"{folder} has no training drawing of these nouns; fetch more sets into it.")
        self.shown = [id for id, _ in found]
        self._features = {
            name: np.stack([look(square) for _, square in found]) for name, look in LOOKS.items()
        }
        self.blind = Counter(self.shown).most_common(1)[0][0]

    def named(self, images: Sequence[pillow.Image]) -> Mapping[str, Sequence[str]]:
        """For each way of looking, and for who does not look, the id of the noun that each drawing is taken for."""
        squares = [squared(each) for each in images]
        answers: dict[str, Sequence[str]] = {BLIND: [self.blind] * len(images)}
        for name, look in LOOKS.items():
            known = self._features[name]
            lengths = (known**2).sum(axis=1)
            answers[name] = [
                self.shown[int(np.argmin(lengths - 2 * known @ look(square)))] for square in squares
            ]
        return answers


@lru_cache(maxsize=2)
def neighbours(folder: Path, among: frozenset[str]) -> Neighbours:
    """The same, made once."""
    return Neighbours(folder, among)
