"""Pictures of the toy world, and what each patch of them shows.

`render` paints a scene with Pillow, antialiased by painting four times larger; masks of shapes and letters are kept,
since edges lie on a coarse grid. `dense_labels` says for every patch what covers it: the task on which the vision
encoder of the `tiny` preset is trained before it meets the language model (the stand-in for OpenCLIP, paper 2.1).
"""

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from qwenvl.data.synth.toyworld import CELL, COLORS, LETTER, PLATE, SHAPES, SIZES, Corners, Scene, Sign

RGB = tuple[int, int, int]
PALETTE: dict[str, RGB] = {
    "red": (215, 25, 35),
    "green": (30, 150, 50),
    "blue": (30, 80, 225),
    "yellow": (250, 215, 0),
    "purple": (140, 40, 175),
    "orange": (255, 125, 0),
    "black": (25, 25, 25),
}
BACKGROUNDS: tuple[RGB, ...] = (
    (238, 238, 238), (222, 234, 246), (246, 236, 220), (224, 242, 226), (243, 228, 240)
)  # fmt: skip
INKS: tuple[RGB, ...] = ((15, 15, 15), (15, 25, 95), (90, 15, 20))
WHITE: RGB = (255, 255, 255)

FINE = 4
"""Painted this many times larger, then averaged."""

SIGN_CLASS = len(SHAPES) + 1
"""Shape class of a patch covered by a sign."""
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
"""Character class k + 1 is character k of this string; 0 is none."""
LONGEST = 4
"""Most characters of a sign."""


def render(scene: Scene, size: int = 112) -> UInt8[np.ndarray, "height width 3"]:
    """Paints the scene as a square RGB picture, `size` pixels on a side."""
    image = Image.new("RGB", (size, size), BACKGROUNDS[scene.background])
    for thing in scene.things:
        _paint(image, thing.shape, thing.box, PALETTE[thing.color])
    for sign in scene.signs:
        if sign.plate:
            left, top, right, bottom = sign.box
            _paint(image, "square", (left - PLATE, top - PLATE, right + PLATE, bottom + PLATE), WHITE)
        for character, box in _letters(sign):
            _paint(image, character + ("bold" if sign.bold else ""), box, INKS[sign.ink])
    return np.array(image)


def _letters(sign: Sign) -> list[tuple[str, Corners]]:
    """Each letter with the box that its ink fills."""
    left, top, _, bottom = sign.box
    starts = range(left, left + len(sign.text) * CELL, CELL)
    return [(character, (x, top, x + LETTER, bottom)) for character, x in zip(sign.text, starts, strict=True)]


def _paint(image: Image.Image, form: str, box: Corners, color: RGB) -> None:
    left, top, right, bottom = (round(edge * image.width * FINE / 1000) for edge in box)
    mask = _mask(form, right - left, bottom - top, left % FINE, top % FINE)
    image.paste(color, (left // FINE, top // FINE), mask)


@lru_cache(maxsize=8192)
def _mask(form: str, width: int, height: int, shift_x: int, shift_y: int) -> Image.Image:
    """Coverage of whole pixels by a form `width` x `height` fine pixels large that starts at the given shift."""
    columns, rows = math.ceil((shift_x + width) / FINE), math.ceil((shift_y + height) / FINE)
    fine = Image.new("L", (columns * FINE, rows * FINE), 0)
    if form in SHAPES:
        _draw_shape(ImageDraw.Draw(fine), form, shift_x, shift_y, width, height)
    else:
        fine.paste(_glyph(form[0], form.endswith("bold")).resize((width, height), 1), (shift_x, shift_y))
    return fine.reduce(FINE)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: int, y: int, width: int, height: int) -> None:
    """Fills the shape in the box; `width` x `height` pixels are covered, the last ones included."""
    right, bottom = x + width - 1, y + height - 1
    if shape == "circle":
        draw.ellipse((x, y, right, bottom), fill=255)
    else:
        corners = [(x + u * (width - 1), y + v * (height - 1)) for u, v in _outline(shape)]
        draw.polygon(corners, fill=255)


@cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners of a polygon that touches all four sides of the unit square."""
    if shape == "star":
        rays = [(1.0 if k % 2 == 0 else 0.42, math.pi * k / 5) for k in range(10)]
        points = [(radius * math.sin(angle), -radius * math.cos(angle)) for radius, angle in rays]
        (x0, x1), (y0, y1) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
        return tuple(((x - x0) / (x1 - x0), (y - y0) / (y1 - y0)) for x, y in points)
    if shape == "cross":
        a, b = 0.32, 0.68
        across = (a, b, b, 1.0, 1.0, b, b, a, a, 0.0, 0.0, a)
        down = (0.0, 0.0, a, a, b, b, 1.0, 1.0, b, b, a, a)
        return tuple(zip(across, down, strict=True))
    return {
        "square": ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)),
        "triangle": ((0.5, 0.0), (1.0, 1.0), (0.0, 1.0)),
        "diamond": ((0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)),
    }[shape]


@cache
def _glyph(character: str, bold: bool) -> Image.Image:
    """The ink of one character, cropped, far larger than it is ever painted.

    Pillow's built-in Aileron, but I and 1 get feet, so that they fill a cell like every other character.
    """
    large = Image.new("L", (320, 320), 0)
    draw = ImageDraw.Draw(large)
    if character in "I1":
        stroke = 25 if bold else 15
        draw.rectangle((50 - stroke // 2, 0, 50 + stroke // 2, 119), fill=255)
        draw.rectangle((0, 120 - stroke, 99, 119), fill=255)
        if character == "I":
            draw.rectangle((0, 0, 99, stroke - 1), fill=255)
        else:
            draw.line((50, stroke // 2, 12, 40), fill=255, width=stroke)
    else:
        font = ImageFont.load_default(160)
        draw.text((60, 40), character, fill=255, font=font, stroke_width=9 if bold else 2)
    return large.crop(large.getbbox())


# === What each patch shows ===


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
    """Left, top, right, bottom edge in sides of the picture; 0 on bare ground."""
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
