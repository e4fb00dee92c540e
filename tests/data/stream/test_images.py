"""The fast path differs from the exact one by as little as it says, and refuses the same images."""

import io

import numpy as np
import pytest
from PIL import Image as pillow

from qwenvl.data.stream.images import square
from qwenvl.images import open_image, resize


def image(width: int, height: int, form: str, mode: str = "RGB") -> bytes:
    random = np.random.default_rng(width)
    small = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    made = pillow.fromarray(small).resize((width, height), pillow.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    made.save(file, form, quality=90)
    return file.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("width", "height"), [(160, 120), (90, 60), (40, 30)])
def test_nearly_all_levels_are_equal(width: int, height: int, mode: str, form: str) -> None:
    encoded = image(width, height, form, mode)
    exact, fast = square(encoded, 56), square(encoded, 56, fast=True)
    assert np.array_equal(exact, resize(open_image(encoded), 56))
    assert fast.shape == exact.shape and fast.dtype == np.uint8
    off = np.abs(exact.astype(int) - fast.astype(int))
    assert off.max() <= 2 and (off > 0).mean() < 0.03


def test_tall_images_stay_near() -> None:
    """Pillow 13 squashes some of them down first, so more levels differ."""
    exact, fast = (square(image(50, 80, "JPEG"), 56, fast=way).astype(int) for way in (False, True))
    assert np.abs(exact - fast).mean() < 1


@pytest.mark.parametrize("fast", [False, True])
def test_colours_that_are_not_plain_and_damage_go_to_pillow(fast: bool) -> None:
    inks = image(64, 48, "JPEG", "CMYK")
    assert np.abs(square(inks, 28, fast=fast).astype(int) - resize(open_image(inks), 28)).max() <= 2
    with pytest.raises(ValueError, match=r"A damaged image: the bytes given cannot be decoded"):
        square(image(160, 120, "JPEG")[:900], 28, fast=fast)
    with pytest.raises(ValueError, match=r"A damaged image: the bytes given cannot be decoded"):
        square(b"\xff\xd8\xffno", 28, fast=fast)
