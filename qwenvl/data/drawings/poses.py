"""A drawing as it might be met: somewhere on some ground, larger or smaller, in other light.

What is transparent shows the ground. An icon of one ink may get another. Everything is drawn from the dice given, so a
pose is a function of their name.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image as pillow
from PIL import ImageEnhance

from qwenvl.data.toy.worlds import Dice
from qwenvl.images import RGB, WHITE

SIDED = frozenset(
    ("left", "right", "arrow", "arrows", "flag", "letter", "letters", "number", "numbers", "digit", "text", "clock",
     "input", "east", "west", "south", "north", "next", "back", "forward", "previous", "rewind", "undo", "redo")
)  # fmt: skip
"""Words of names of what is something else in a mirror."""

SMALLEST = 0.4
"""Longest side of a drawing in sides of its image, at the least."""


def posed(
    image: pillow.Image,
    dice: Dice,
    size: int,
    *,
    name: str = "",
    strength: float = 1.0,
    painted: bool = False,
) -> tuple[UInt8[np.ndarray, "size size 3"], tuple[int, int, int, int]]:
    """The drawing (RGBA) on a square of `size` pixels, and its place there: left, top, right, bottom in pixels.

    It is mirrored now and then where `name` allows it. At `strength` 0 it fills the square, on white; towards 1
    everything differs more, and more often. What is `painted` keeps its colours.
    """
    cut = cut_out(image)
    if dice.chance(0.4 * strength) and SIDED.isdisjoint(name.lower().split()):
        cut = cut.transpose(pillow.Transpose.FLIP_LEFT_RIGHT)
    inks = dice.chance(0.5 * strength) and not painted
    cut = turned(inked(cut, dice) if inks else cut, dice, strength)
    longest = size * (1 - strength * (1 - SMALLEST) * (1 - dice.share() ** 0.7))
    stretch = 1 + strength * (0.3 * dice.share() - 0.15) if dice.chance(0.5) else 1.0
    scale = longest / max(cut.width * stretch, cut.height)
    sides = [
        min(size, max(4, round(cut.width * stretch * scale))),
        min(size, max(4, round(cut.height * scale))),
    ]
    cut = cut.resize((sides[0], sides[1]), pillow.Resampling.BILINEAR, reducing_gap=2.0)
    plain = not dice.chance(strength)
    canvas = pillow.new("RGB", (size, size), WHITE) if plain else ground(dice, size, beside=tone(cut))
    place = [round((size - side) * (0.5 + strength * (dice.share() - 0.5))) for side in sides]
    canvas.paste(cut, (place[0], place[1]), cut)
    box = (place[0], place[1], place[0] + cut.width, place[1] + cut.height)
    return np.asarray(canvas if painted else in_other_light(canvas, dice, strength)), box


def cut_out(image: pillow.Image) -> pillow.Image:
    """What is not transparent, and nothing around it."""
    box = image.getchannel("A").getbbox()
    return image if box is None else image.crop(box)


def inked(image: pillow.Image, dice: Dice) -> pillow.Image:
    """An icon of one ink in another, any other drawing as it is."""
    return repainted(image, colour_of(dice)) if is_of_one_ink(image) else image


def is_of_one_ink(image: pillow.Image) -> bool:
    """Whether what is opaque has one colour."""
    small = np.asarray(image.reduce(4) if min(image.size) >= 16 else image).reshape(-1, 4)
    opaque = small[small[:, 3] > 200, :3]
    return len(opaque) > 0 and bool((np.ptp(opaque.astype(np.int16), axis=0) <= 8).all())


def repainted(image: pillow.Image, colour: RGB) -> pillow.Image:
    """The same transparency in one colour."""
    painted = pillow.new("RGBA", image.size, (*colour, 0))
    painted.putalpha(image.getchannel("A"))
    return painted


def turned(image: pillow.Image, dice: Dice, strength: float = 1.0) -> pillow.Image:
    """Leaning a little, now and then."""
    if not dice.chance(0.3 * strength):
        return image
    return cut_out(image.rotate(strength * (30 * dice.share() - 15), pillow.Resampling.BILINEAR, expand=True))


def tone(image: pillow.Image) -> float:
    """Mean brightness of what is opaque, 0 to 255."""
    small = np.asarray(image.resize((8, 8), pillow.Resampling.BOX), np.float32)
    weight = small[..., 3]
    return float((small[..., :3].mean(-1) * weight).sum() / max(float(weight.sum()), 1.0))


def colour_of(dice: Dice) -> RGB:
    """Any colour."""
    return dice.below(256), dice.below(256), dice.below(256)


def ground(dice: Dice, size: int, *, beside: float) -> pillow.Image:
    """White, a plain colour, or light and colours out of focus, apart in brightness from what stands on it."""
    kind = dice.below(10)
    if kind < 4 and beside < 210:
        return pillow.new("RGB", (size, size), WHITE)
    for _ in range(4):
        cells = 1 if kind < 7 else 2 + dice.below(5)
        levels = np.array([colour_of(dice) for _ in range(cells * cells)], np.uint8).reshape(cells, cells, 3)
        if cells > 1:  # calm enough to stand behind something
            grey = levels.mean((0, 1), keepdims=True)
            levels = (grey + (levels - grey) * (0.1 + 0.6 * dice.share())).clip(0, 255).astype(np.uint8)
        if abs(float(levels.mean()) - beside) > 50:
            break
    return pillow.fromarray(levels).resize((size, size), pillow.Resampling.BICUBIC)


def in_other_light(image: pillow.Image, dice: Dice, strength: float = 1.0) -> pillow.Image:
    """Brighter, paler, of less contrast or out of focus, now and then."""
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        if dice.chance(0.3 * strength):
            image = change(image).enhance(0.6 + 0.8 * dice.share())
    if dice.chance(0.1 * strength):
        small = max(16, round(image.width * (0.35 + 0.4 * dice.share())))
        image = image.resize((small, small), pillow.Resampling.BILINEAR).resize(
            image.size, pillow.Resampling.BILINEAR
        )
    return image
