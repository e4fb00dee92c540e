"""What ink, paper, light and lens do to a page (paper A.4: SynthDoG's effects); none of them moves a line.

All take and give Pillow images. Each is measured: together they must leave eight pages a second on one core.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageChops

from qwenvl.data.synth.pages.look import Look
from qwenvl.data.synth.pages.scenery import TILE, noise, tiled

Resampling = Image.Resampling


def frayed(page: Image.Image, alpha: float, rng: np.random.Generator) -> Image.Image:
    """SynthDoG's elastic distortion: every pixel is taken from up to `alpha` <= 1 pixels beside it, each on its own.

    A mixture of the pixel and a random neighbour, which is what such a shift does on average; a line as a whole stays
    where it is. RGBA only.
    """
    if alpha <= 0.02:
        return page
    width, height = page.size
    start = (int(rng.integers(TILE)), int(rng.integers(TILE)))
    across, down = (np.asarray(tiled(step, page.size, start), np.int8).astype(np.int32) for step in _steps())
    source = (
        np.arange(width * height, dtype=np.int32).reshape(height, width) + across + down * np.int32(width)
    )
    pixels = np.asarray(page).view(np.uint32).ravel()
    shifted = pixels.take(source.ravel(), mode="clip").view(np.uint8).reshape(height, width, 4)
    return Image.blend(page, Image.fromarray(shifted, "RGBA"), alpha / 2)


@cache
def _steps() -> tuple[Image.Image, Image.Image]:
    """-1, 0 or 1 pixel across and down, as bytes (255 is -1)."""
    rng = np.random.default_rng(18)
    draws = rng.integers(-1, 2, (2, TILE, TILE), dtype=np.int8).view(np.uint8)
    return Image.fromarray(draws[0]), Image.fromarray(draws[1])


def grainy(page: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    """Grey noise of this standard deviation (levels) on an opaque RGBA page."""
    if deviation < 0.3:
        return page
    level = np.arange(256)
    grain = noise(rng, page.size, "fine").point(
        (128 + (level - 128) * deviation / 32).round().astype(int).tolist()
    )
    opaque = Image.new("L", page.size, 255)
    return ImageChops.add(page, Image.merge("RGBA", (grain, grain, grain, opaque)), 1, -128)


# === Light and lens, on the finished image ===


def lit(image: Image.Image, look: Look, rng: np.random.Generator) -> Image.Image:
    """A shadow across the image, then a cast of colour, contrast and brightness; RGB."""
    shade = _shadow(image.size, rng.uniform(*look.shadow), rng)
    image = ImageChops.multiply(image, Image.merge("RGB", (shade, shade, shade)))
    cast, strength = rng.uniform(0, 255, 3), rng.uniform(0, 0.2) * (rng.random() < look.tint)
    contrast, brightness = rng.uniform(*look.contrast), rng.uniform(*look.brightness)
    level = np.arange(256)[None]
    tables = (level * (1 - strength) + cast[:, None] * strength) * contrast + brightness
    return image.point(tables.clip(0, 255).round().astype(int).ravel().tolist())


def _shadow(size: tuple[int, int], intensity: float, rng: np.random.Generator) -> Image.Image:
    """Grey image to multiply with: darker on one side of a soft edge at a random place and angle."""
    angle, amount, smoothing = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1), rng.uniform(0.5, 1)
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 64), np.linspace(-0.5, 0.5, 64))
    along = x * np.cos(angle) + y * np.sin(angle) + 0.5
    edge = np.clip((along - 1 + amount) / smoothing + 0.5, 0, 1)
    light = 255 - intensity * edge * edge * (3 - 2 * edge)
    return Image.fromarray(light.round().astype(np.uint8)).resize(size, Resampling.BILINEAR)


def blurred(image: Image.Image, sigma: float) -> Image.Image:
    """About a Gaussian blur of `sigma` pixels (to 2), by way of a smaller image.

    Below 0.6 pixels, a mixture of the image and its blur by 0.6: the mixture has the right variance.
    """
    if sigma < 0.1:
        return image
    scale = max(sigma, 0.6) / 0.577
    small = (max(1, round(image.width / scale)), max(1, round(image.height / scale)))
    soft = image.resize(small, Resampling.BILINEAR).resize(image.size, Resampling.BILINEAR)
    return soft if sigma >= 0.6 else Image.blend(image, soft, (sigma / 0.6) ** 2)


def moved(image: Image.Image, length: int, angle: float) -> Image.Image:
    """Motion blur: the mean of `length` (odd) copies, one pixel apart along `angle` (radians)."""
    reach = length // 2
    source = np.pad(np.asarray(image), ((reach, reach), (reach, reach), (0, 0)), mode="edge").astype(
        np.uint16
    )
    height, width = image.height, image.width
    total = np.zeros((height, width, 3), np.uint16)
    for k in range(-reach, reach + 1):
        dx, dy = round(k * np.cos(angle)), round(k * np.sin(angle))
        total += source[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
    return Image.fromarray((total // np.uint16(length)).astype(np.uint8))
