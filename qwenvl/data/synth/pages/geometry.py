"""How a flat page comes to lie in an image: a smooth elastic field, then a homography, both known exactly.

    page p  ->  p + field(p)  ->  homography  ->  image

Points of the page (the corners of a line) go this way in closed form. Pixels are fetched the other way: the inverse
is solved at the nodes of a mesh, to a thousandth of a pixel, and is bilinear between them. Coordinates are continuous:
pixel k covers [k, k + 1), as in Pillow.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from PIL import Image

CELL = 32
"""Pixels along a side of the mesh where a page is bent; between nodes the warp is bilinear."""


@dataclass(frozen=True)
class Field:
    """A smooth displacement of the page: a sum of sine waves along random directions; no waves is no displacement."""

    waves: Float[np.ndarray, "waves 5"]
    """Per wave: frequency along x and y (cycles per pixel), phase (radians), amplitude along x and y (pixels)."""

    @classmethod
    def random(cls, rng: np.random.Generator, amplitude: float, side: float) -> "Field":
        """Three waves of 0.4 to 1.4 cycles per `side` pixels, at most `amplitude` pixels of displacement in all."""
        if amplitude <= 0:
            return cls(np.zeros((0, 5)))
        angle = rng.uniform(0, 2 * np.pi, (3, 2))
        cycles = rng.uniform(0.4, 1.4, 3) / side
        size = rng.dirichlet([2, 2, 2]) * amplitude
        waves = [cycles * np.cos(angle[:, 0]), cycles * np.sin(angle[:, 0]), rng.uniform(0, 2 * np.pi, 3)]
        return cls(np.stack([*waves, size * np.cos(angle[:, 1]), size * np.sin(angle[:, 1])], axis=1))

    def __call__(self, points: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "points 2"]:
        """The displacement at each point, in pixels."""
        phase = 2 * np.pi * points @ self.waves[:, :2].T + self.waves[:, 2]  # (points, waves)
        return np.sin(phase) @ self.waves[:, 3:]


@dataclass(frozen=True)
class Warp:
    """From the page (`size` in pixels: width, height) to the image."""

    size: tuple[int, int]
    field: Field
    homography: Float[np.ndarray, "3 3"]

    def __call__(self, points: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "points 2"]:
        """Where points of the page lie in the image."""
        return project(self.homography, points + self.field(points))

    def inverse(self, points: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "points 2"]:
        """Where points of the image come from on the page, to a thousandth of a pixel."""
        flat = project(np.linalg.inv(self.homography), points)
        found = flat
        for _ in range(12 if len(self.field.waves) else 0):  # a contraction: the field is gentle
            found = flat - self.field(found)
        return found

    def apply(self, page: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, tuple[int, int]]:
        """The page as it lies in an image of `size`: the part of the image around it, and where that part begins.

        The page's own mode, bilinear; around the page everything is 0.
        """
        width, height = page.size
        edge = np.linspace(0, 1, 33)
        rim = np.concatenate([np.stack([edge * width, 0 * edge + y], 1) for y in (0, height)])
        rim = np.concatenate([rim, *(np.stack([0 * edge + x, edge * height], 1) for x in (0, width))])
        corners = self(rim)
        left, top = np.maximum(np.floor(corners.min(0)).astype(int), 0)
        right, bottom = np.minimum(np.ceil(corners.max(0)).astype(int), size)
        part, start = (int(right - left), int(bottom - top)), (int(left), int(top))
        if not len(self.field.waves):
            shifted = np.linalg.inv(self.homography) @ np.array([[1.0, 0, left], [0, 1, top], [0, 0, 1]])
            data = (shifted / shifted[2, 2]).ravel()[:8].tolist()
            method: Image.Transform = Image.Transform.PERSPECTIVE
        else:
            data, method = self._mesh(start, part), Image.Transform.MESH
        return page.transform(part, method, data, Image.Resampling.BILINEAR), start

    def _mesh(self, start: tuple[int, int], part: tuple[int, int]) -> list[tuple[tuple, tuple]]:
        """Rectangles of the part with the quadrilaterals of the page that fill them (Pillow's order of corners)."""
        xs, ys = ([*range(0, side, CELL), side] for side in part)
        nodes = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2) + np.array(start, float)
        sources = self.inverse(nodes).reshape(len(ys), len(xs), 2)
        quads = [sources[:-1, :-1], sources[1:, :-1], sources[1:, 1:], sources[:-1, 1:]]
        flat = np.concatenate(quads, axis=-1).reshape(-1, 8).tolist()
        boxes = [(x0, y0, x1, y1) for y0, y1 in pairwise(ys) for x0, x1 in pairwise(xs)]
        return list(zip(boxes, map(tuple, flat), strict=True))


def project(
    homography: Float[np.ndarray, "3 3"], points: Float[np.ndarray, "points 2"]
) -> Float[np.ndarray, "points 2"]:
    """Points through a homography."""
    lifted = points @ homography[:, :2].T + homography[:, 2]
    return lifted[:, :2] / lifted[:, 2:]


def homography_of(
    source: Float[np.ndarray, "4 2"], target: Float[np.ndarray, "4 2"]
) -> Float[np.ndarray, "3 3"]:
    """The homography that takes four points to four others, no three of them in line."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows.append([x, y, 1, 0, 0, 0, -u * x, -u * y])
        rows.append([0, 0, 0, x, y, 1, -v * x, -v * y])
    values = np.linalg.solve(np.array(rows, float), np.asarray(target, float).ravel())
    return np.append(values, 1.0).reshape(3, 3)


def rectangle(width: int, height: int) -> Float[np.ndarray, "4 2"]:
    """Corners from the top left clockwise."""
    return np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
