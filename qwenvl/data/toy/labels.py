"""What each patch of an image of the toy world shows: the dense labels of the tiny recipes.

On this task the vision encoder of the `tiny` preset is trained before it meets the language model: the stand-in for
OpenCLIP's pre-training (paper 2.1).
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from qwenvl.data.toy.worlds import CELL, COLORS, LETTER, SHAPES, SIZES, Corners, Scene, Sign

SIGN_CLASS = len(SHAPES) + 1
"""Shape class of a patch covered by a sign."""
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
"""Character class k + 1 is character k of this string; 0 is none."""
LONGEST = 4
"""Most characters of a sign."""


@dataclass(frozen=True, kw_only=True)
class DenseLabels:
    """What covers most of each patch of a grid x grid raster; class 0 is bare ground."""

    shape: Int[np.ndarray, "grid grid"]
    """1 to 6 as in `SHAPES`, 7 for a sign."""
    color: Int[np.ndarray, "grid grid"]
    """1 to 7 as in `COLORS`; 0 for signs too."""
    size: Int[np.ndarray, "grid grid"]
    """1 small, 2 large; 0 for signs too."""
    box: Float[np.ndarray, "grid grid 4"]
    """Left, top, right, bottom edge in sides of the image; 0 on bare ground."""
    digits: Int[np.ndarray, "grid grid 4 2"]
    """Hundreds and tens of each edge, as the model will write it; 0 on bare ground."""
    word: Int[np.ndarray, "grid grid 4"]
    """Character classes of the whole text of the sign that covers the patch, 0 behind its end and off signs."""
    character: Int[np.ndarray, "grid grid 2 2"]
    """Character class at the middle of each quarter of the patch (rows, columns); 1 to 36 as in `CHARACTERS`."""


def dense_labels(scene: Scene, grid: int) -> DenseLabels:
    """What each patch of a `grid` x `grid` raster shows: the item whose box covers most of it, an eighth at least."""
    shape, color, size = (np.zeros((grid, grid), np.int64) for _ in range(3))
    edges = np.zeros((grid, grid, 4), np.float32)
    word, quarters = np.zeros((grid, grid, LONGEST), np.int64), np.zeros((2 * grid, 2 * grid), np.int64)
    covers = np.array([_cover(item.box, grid) for item in scene.items])  # (items, rows, columns)
    owner = np.where(covers.max(axis=0) >= 1 / 8, covers.argmax(axis=0), -1)
    for index, item in enumerate(scene.items):
        covered = owner == index
        edges[covered] = np.array(item.box, np.float32) / 1000
        if isinstance(item, Sign):
            shape[covered] = SIGN_CLASS
            left, top, _, bottom = item.box
            for k, character in enumerate(item.text):
                word[covered, k] = CHARACTERS.index(character) + 1
                cell = left + k * CELL, top, left + k * CELL + LETTER, bottom
                quarters[_covered(cell, 2 * grid)] = CHARACTERS.index(character) + 1
        else:
            shape[covered] = SHAPES.index(item.shape) + 1
            color[covered] = COLORS.index(item.color) + 1
            size[covered] = SIZES.index(item.size) + 1
    thousandths = np.rint(edges * 1000).astype(np.int64)
    return DenseLabels(
        shape=shape,
        color=color,
        size=size,
        box=edges,
        digits=np.stack([thousandths // 100, thousandths // 10 % 10], axis=-1),
        word=word,
        character=quarters.reshape(grid, 2, grid, 2).transpose(0, 2, 1, 3),
    )


def _cover(box: Corners, grid: int) -> Float[np.ndarray, "grid grid"]:
    """Share of every patch that the box covers."""
    left, top, right, bottom = (edge * grid / 1000 for edge in box)
    starts = np.arange(grid)
    columns = (np.minimum(right, starts + 1) - np.maximum(left, starts)).clip(0)
    rows = (np.minimum(bottom, starts + 1) - np.maximum(top, starts)).clip(0)
    return np.outer(rows, columns)


def _covered(box: Corners, grid: int) -> tuple[slice, slice]:
    """Rows and columns of the raster whose centres lie in the box."""
    left, top, right, bottom = (math.ceil(edge * grid / 1000 - 0.5) for edge in box)
    return slice(top, bottom), slice(left, right)
