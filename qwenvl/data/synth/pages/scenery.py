"""What is not text: backgrounds from a folder or made up, and the texture of paper (paper A.4: COCO as background).

Noise is drawn once per process from fixed seeds into tiles; a page takes a place in a tile from its own generator, so
that a page stays a function of its seed and costs little.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from qwenvl.data.synth.pages.text import files_in
from qwenvl.images import open_image

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Of files that may be backgrounds."""

TILE = 1024
"""Pixels along a side of the tiles."""

Size = tuple[int, int]
Resampling = Image.Resampling


class Backgrounds:
    """Images of a folder, or made-up surfaces where no folder is given."""

    def __init__(self, folder: Path | None = None) -> None:
        """Raises ValueError where the folder has no images."""
        self._paths: Sequence[Path] = ()
        if folder is not None:
            self._paths = files_in(folder, SUFFIXES) if folder.is_dir() else ()
            if not self._paths:
                raise ValueError(
                    f"{folder} has no images for backgrounds; give a folder of .jpg or .png files."
                )

    def __call__(self, rng: np.random.Generator, size: Size, sigma: float) -> Image.Image:
        """An image of exactly `size`, blurred by `sigma` pixels.

        Raises ValueError for a damaged file of the folder.
        """
        if not self._paths:
            return _surface(rng, size, sigma)
        image = open_image(self._paths[int(rng.integers(len(self._paths)))])
        return _blurred(_covering(rng, image, size), sigma)


def _covering(rng: np.random.Generator, image: Image.Image, size: Size) -> Image.Image:
    """The largest part of the image with the proportions of `size`, at a random place, resized."""
    scale = min(image.width / size[0], image.height / size[1])
    width, height = size[0] * scale, size[1] * scale
    left, top = rng.uniform(0, 1, 2) * (image.width - width, image.height - height)
    return image.resize(size, Resampling.BILINEAR, (left, top, left + width, top + height), reducing_gap=2.0)


def _blurred(image: Image.Image, sigma: float) -> Image.Image:
    """A blur of about `sigma` pixels, by way of a smaller image: as good as Gaussian here, and much cheaper."""
    smaller = sigma / 0.577  # two triangles as wide as a small pixel have this sigma
    if smaller <= 1.05:
        return image
    small = (max(2, round(image.width / smaller)), max(2, round(image.height / smaller)))
    return image.resize(small, Resampling.BILINEAR).resize(image.size, Resampling.BILINEAR)


# === Made-up surfaces ===


def _surface(rng: np.random.Generator, size: Size, sigma: float) -> Image.Image:
    """Wood, cloth, stone or things out of focus, painted small and enlarged."""
    scale = 2 if sigma < 3 else 4
    small = (-(-size[0] // scale), -(-size[1] // scale))
    kind = ("wood", "cloth", "stone", "things")[int(rng.choice(4, p=(0.35, 0.2, 0.2, 0.25)))]
    if kind == "things":
        image = _things(rng, small)
    else:
        hue = _WOODS if kind == "wood" else _PLAIN
        dark, light = (np.array(c) for c in hue[int(rng.integers(len(hue)))])
        ramp = np.linspace(dark, light, 256).clip(0, 255).astype(np.uint8)
        image = _grain(rng, small, kind).convert("RGB").point(ramp.T.ravel().tolist())
    return image.resize(size, Resampling.BICUBIC)


_WOODS = (((70, 42, 22), (170, 118, 72)), ((112, 82, 54), (206, 170, 126)), ((46, 30, 22), (108, 76, 52)),
          ((150, 120, 86), (228, 202, 166)))  # fmt: skip
_PLAIN = (((52, 56, 62), (118, 124, 132)), ((108, 100, 92), (184, 176, 164)), ((34, 52, 74), (84, 110, 140)),
          ((90, 34, 34), (148, 78, 72)), ((40, 66, 50), (104, 130, 104)), ((150, 150, 148), (222, 220, 216)),
          ((20, 20, 22), (66, 66, 70)))  # fmt: skip


def _grain(rng: np.random.Generator, size: Size, kind: str) -> Image.Image:
    """A grey image: long fibres for wood, a weave for cloth, clouds for stone."""
    if kind == "wood":
        long = size[::-1] if rng.random() < 0.5 else size
        rough = noise(rng, (max(2, long[0] // 60), max(2, long[1] // 2)), "smooth").resize(
            long, Resampling.BICUBIC
        )
        fine = noise(rng, (max(2, long[0] // 16), long[1]), "fine").resize(long, Resampling.BILINEAR)
        grain = Image.blend(rough, fine, 0.35)
        for plank in range(0, long[1], max(8, int(long[1] / rng.uniform(2, 6)))):
            shade = int(rng.integers(60, 130))
            grain.paste(shade, (0, plank, long[0], plank + 2))
        return grain if long == size else grain.transpose(Image.Transpose.TRANSPOSE)
    if kind == "cloth":
        x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
        period = rng.uniform(3, 9)
        weave = 128 + 40 * np.sign(np.sin(2 * np.pi * x / period) * np.sin(2 * np.pi * y / period))
        return Image.blend(Image.fromarray(weave.astype(np.uint8)), noise(rng, size, "smooth"), 0.6)
    return Image.blend(noise(rng, size, "smooth"), noise(rng, size, "fine"), 0.2)


def _things(rng: np.random.Generator, size: Size) -> Image.Image:
    """Large patches of light and colour, as in a photograph out of focus."""
    grid = rng.integers(25, 215, (int(rng.integers(3, 8)), int(rng.integers(3, 8)), 3))
    grey = grid.mean(-1, keepdims=True)
    calm = (grey + (grid - grey) * rng.uniform(0.02, 0.3)).astype(np.uint8)
    return Image.fromarray(calm).resize(size, Resampling.BICUBIC)


# === Paper ===


def paper(rng: np.random.Generator, size: Size, strength: float) -> Image.Image:
    """A blank sheet, RGB: white, grey, cream or yellowed, with fibres and stains of the strength given (0 to 1)."""
    texture = noise(rng, size, "paper")
    tones = (
        (255, 255, 255),
        (250, 250, 247),
        (252, 248, 236),
        (245, 236, 210),
        (236, 238, 240),
        (255, 244, 246),
    )
    tone = tones[int(rng.choice(6, p=(0.4, 0.2, 0.15, 0.1, 0.1, 0.05)))]
    level = np.arange(256) / 255
    tables = [channel * (1 - strength * (1 - level)) for channel in tone]
    lut = np.concatenate(tables).round().astype(int).tolist()
    return Image.merge("RGB", [texture] * 3).point(lut)


# === Noise ===


def noise(rng: np.random.Generator, size: Size, kind: str) -> Image.Image:
    """A grey image of noise from a random place of a tile: "fine" pixels, "smooth" clouds, "paper" with fibres."""
    tile = _tile(kind)
    return tiled(tile, size, (int(rng.integers(TILE)), int(rng.integers(TILE))))


def tiled(tile: Image.Image, size: Size, start: tuple[int, int]) -> Image.Image:
    """An image of `size` laid with tiles, from place `start` of the first."""
    if start[0] + size[0] <= tile.width and start[1] + size[1] <= tile.height:
        return tile.crop((*start, start[0] + size[0], start[1] + size[1]))
    canvas = Image.new(tile.mode, size)
    for top in range(-start[1], size[1], tile.height):
        for left in range(-start[0], size[0], tile.width):
            canvas.paste(tile, (left, top))
    return canvas


@cache
def _tile(kind: str) -> Image.Image:
    rng = np.random.default_rng([17, len(kind)])
    if kind == "fine":
        levels = rng.normal(128, 32, (TILE, TILE))
    elif kind == "smooth":
        levels = _octaves(rng, (4, 8, 16, 32, 64))
    else:
        fibres = (
            _octaves(rng, (2, 6)) * 0.25
            + _octaves(rng, (256, 512)) * 0.45
            + rng.normal(128, 40, (TILE, TILE)) * 0.3
        )
        levels = 150 + 1.6 * (fibres - fibres.mean())
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def _octaves(rng: np.random.Generator, grids: Sequence[int]) -> np.ndarray:
    """Clouds that repeat after TILE pixels, grey levels about 128."""
    total = np.zeros((TILE, TILE))
    for grid in grids:
        coarse = np.pad(rng.normal(0, 1, (grid, grid)).astype(np.float32), 2, mode="wrap")
        rim = 2 * TILE // grid
        full = Image.fromarray(coarse).resize((TILE + 2 * rim, TILE + 2 * rim), Resampling.BICUBIC)
        total += np.asarray(full)[rim:-rim, rim:-rim] / grid**0.35
    return 128 + 52 * total / total.std()
