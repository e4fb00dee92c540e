"""Images of the toy world, painted with Pillow and antialiased by painting four times larger.

Masks of shapes and letters are kept, since edges lie on a coarse grid.
"""

import math
from functools import cache, lru_cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from qwenvl.data.toy.worlds import CELL, LETTER, PLATE, SHAPES, Corners, Scene, Sign

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


def render(scene: Scene, size: int = 112) -> UInt8[np.ndarray, "height width 3"]:
    """Paints the scene as a square RGB image, `size` pixels on a side."""
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
