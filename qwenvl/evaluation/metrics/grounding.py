"""Referring expressions (paper Table 6): the first box of the answer is right if its IoU with the truth is >= 0.5.

The release divides coordinates by 999 here (the drawing code by 1000) and computes in float32; borderline boxes flip
in float64, so this does too. An answer without a box is scored as wrong *and* counted as a parse failure.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwenvl.markup import Box, Quad

THRESHOLD = 0.5
GRID = 999
_CORNERS = re.compile(r"\((.*?)\),\((.*?)\)")

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Grounded:
    """The verdict on one answer."""

    parsed: Corners | None
    """Left, top, right, bottom on the model's grid as written; None if the answer holds no box."""
    scaled: NDArray[np.float32]
    """The same in pixels (zeros if there is none)."""
    iou: float
    """Overlap with the truth; nan if both boxes are empty."""
    correct: bool


def parse_box(answer: str) -> Corners | None:
    """The first `(x1,y1),(x2,y2)` of an answer, or None. If the first pair is no numbers, later ones are not tried."""
    found = _CORNERS.search(answer)
    if found is None:
        return None
    try:
        x1, y1 = map(float, found[1].split(","))
        x2, y2 = map(float, found[2].split(","))
    except ValueError:
        return None
    return x1, y1, x2, y2


def iou(boxes: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of boxes (n, 4) with others (n, 4), row by row, in float32. Empty over empty is nan."""
    with np.errstate(all="ignore"):
        inner = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
        inner = np.maximum(inner, np.float32(0))
        overlap = inner[:, 0] * inner[:, 1]
        areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, others)]
        return overlap / (areas[0] + areas[1] - overlap)


def to_pixels(corners: Corners, width: float, height: float) -> NDArray[np.float32]:
    """Corners on the grid as pixels, rounded to float32 after each step as the release rounds."""
    with np.errstate(all="ignore"):
        unit = np.asarray(corners, np.float32) / np.float32(GRID)
        return unit * np.asarray([width, height, width, height], np.float32)


def score(answer: str, truth: Sequence[float], width: float, height: float) -> Grounded:
    """Judge one answer against the true box (left, top, right, bottom in pixels) of a `width` x `height` image."""
    if len(truth) != 4:
        raise ValueError(
            f"a true box needs 4 numbers (left, top, right, bottom), got {len(truth)}: {list(truth)}."
        )
    parsed = parse_box(answer)
    scaled = to_pixels(parsed or (0.0, 0.0, 0.0, 0.0), width, height)
    overlap = float(iou(scaled[None], np.asarray([truth], np.float32))[0])
    return Grounded(parsed, scaled, overlap, parsed is not None and overlap >= THRESHOLD)


# === Shapes on the grid ===


def overlap(one: Box | Quad, other: Box | Quad) -> float:
    """Intersection over union, of a quad's upright extent; 0 if both are empty."""
    value = float(iou(_extent(one), _extent(other))[0])
    return value if value == value else 0.0


def _extent(shape: Box | Quad) -> np.ndarray:
    if isinstance(shape, Box):
        return np.asarray([[shape.x1, shape.y1, shape.x2, shape.y2]], np.float32)
    xs, ys = zip(*shape.points, strict=True)
    return np.asarray([[min(xs), min(ys), max(xs), max(ys)]], np.float32)


def found(said: Sequence[Box | Quad], wanted: Sequence[Box | Quad]) -> int:
    """How many of the wanted shapes one of the first as many that were said overlaps by at least one half.

    Each that was said counts once; of one wanted shape this is the first one's verdict, as in RefCOCO.
    """
    left = list(said[: len(wanted)])
    hits = 0
    for shape in wanted:
        nearest = max(left, key=lambda each: overlap(each, shape), default=None)
        if nearest is not None and overlap(nearest, shape) >= THRESHOLD:
            left.remove(nearest)
            hits += 1
    return hits
