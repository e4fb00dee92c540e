"""Pictures in, pixels and drawn boxes out. That the pixels are the official ones: parity/test_preprocess_parity.py."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl.drawing import PALETTE, draw_boxes
from qwenvl.images import MEAN, STD, normalise, open_image, preprocess, upright
from qwenvl.markup import Box, Quad

GOLDEN = Path(__file__).parent / "golden" / "preprocess"


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


# ---- what a picture may come from ----


def test_every_source_gives_the_same_pixels():
    array = noise(20, 30)
    image = Image.fromarray(array)
    expected = preprocess(array, 28)
    assert expected.shape == (3, 28, 28) and expected.dtype == np.float32 and expected.flags.c_contiguous
    for source in (image, encoded(image, "PNG"), encoded(image, "BMP"), encoded(image, "TIFF")):
        assert np.array_equal(preprocess(source, 28), expected)
    for path in (GOLDEN / "rgba.png", str(GOLDEN / "rgba.png")):
        assert np.array_equal(preprocess(path, 28), preprocess((GOLDEN / "rgba.png").read_bytes(), 28))


def test_arrays_of_one_three_and_four_channels():
    array = noise(6, 5, 4)
    assert np.array_equal(np.asarray(open_image(array)), array[..., :3])  # alpha dropped, not composited
    grey = np.repeat(array[..., :1], 3, axis=2)
    assert np.array_equal(np.asarray(open_image(array[..., 0])), grey)
    assert np.array_equal(np.asarray(open_image(array[..., :1])), grey)
    assert np.array_equal(np.asarray(open_image(array[:, ::-1, :3])), array[:, ::-1, :3])  # a view


def test_an_rgb_image_is_not_copied_and_never_changed():
    image = Image.fromarray(noise(40, 40))
    before = image.tobytes()
    assert open_image(image) is image
    assert draw_boxes(image, [Box(100, 100, 900, 900, label="dog")]) is not image
    assert image.tobytes() == before


def test_of_an_animation_the_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(gif).getpixel((0, 0)) == (255, 0, 0)


def test_exif_turns_the_image_only_on_request():
    lying = open_image(GOLDEN / "exif_rot6.jpg")
    assert lying.size == (200, 100)
    assert upright(lying).size == (100, 200)


def test_normalise_is_the_clip_formula():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    expected = (levels.transpose(2, 0, 1) / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert np.abs(normalise(levels) - expected).max() < 1e-6


# ---- what is refused, and the sentence that says why ----

JPEG = encoded(Image.fromarray(noise(64, 64)), "JPEG")
PNG = encoded(Image.fromarray(noise(64, 64)), "PNG")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/picture.png", "No picture at 'no/such/picture.png'; check the path"),
        ("nul\0.png", "Not readable: the file .* give a readable picture file"),
        (str(GOLDEN), "Not readable: the file .*is a folder; expected a file"),
        (str(GOLDEN / "cases.json"), "Not a picture: the file .* is in no format that is opened"),
        (
            "https://example.com/a.jpg",
            "URL 'https://example.com/a.jpg'; pictures are never fetched: download it",
        ),
        ("FILE:///etc/passwd", "pictures are never fetched"),
        ("data:image/png;base64,AAAA", "pictures are never fetched"),
        (b"", "Not a picture: the bytes given"),
        (b"<svg></svg>", "Not a picture: the bytes given is in no format that is opened"),
        (JPEG[: len(JPEG) // 2], "A damaged picture: the bytes given cannot be decoded .*truncated"),
        (PNG[: len(PNG) // 2], "A damaged picture: the bytes given cannot be decoded"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            r"Not a picture: the bytes given is in no format that is opened \(JPEG, PNG, WEBP, GIF, BMP, TIFF\)",
        ),
        (
            Image.new("RGB", (0, 5)),
            "without pixels: the Pillow picture is 0 x 5; both sides must be at least 1",
        ),
        (np.zeros((0, 5, 3), np.uint8), r"without pixels: the array has shape \(0, 5, 3\)"),
        (
            np.zeros((3, 4, 5), np.uint8),
            r"got \(3, 4, 5\); channels come last: give array.transpose\(1, 2, 0\)",
        ),
        (np.zeros((1, 8, 8, 3), np.uint8), r"must be \(height, width\) or .*, got \(1, 8, 8, 3\)\.$"),
        (np.zeros((8, 8, 3), np.float32), "must be uint8 with levels 0 to 255, got float32 of shape"),
        (np.zeros((8, 8), bool), "must be uint8 with levels 0 to 255, got bool"),
    ],
)
def test_bad_images_get_one_clear_sentence(source, message):
    with pytest.raises(ValueError, match=message):
        open_image(source)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_of_more_than_100_megapixels_is_refused_from_its_header():
    for side, size in ((20_000, "400000000"), (10_001, "10001 x 10001")):
        header = PNG[:16] + side.to_bytes(4, "big") * 2
        checksum = zlib.crc32(header[12:] + PNG[24:29]).to_bytes(4, "big")
        with pytest.raises(
            ValueError, match=f"A picture too large: .*{size} pixels, the limit is 100 megapixels"
        ):
            open_image(header + PNG[24:29] + checksum + PNG[33:])


def test_a_size_below_one_is_refused():
    with pytest.raises(ValueError, match="cannot be 0 pixels a side"):
        preprocess(noise(4, 4), 0)


# ---- drawing ----


def changed(before: Image.Image, after: Image.Image) -> np.ndarray:
    return (np.asarray(before) != np.asarray(after)).any(axis=2)


def test_a_box_is_drawn_where_it_is():
    white = Image.new("RGB", (400, 200), "white")
    ink = changed(white, draw_boxes(white, [Box(250, 250, 750, 750)]))
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    for found, expected in zip(
        (rows[0], rows[-1], columns[0], columns[-1]), (50, 150, 100, 300), strict=True
    ):
        assert abs(found - expected) <= 3
    assert not ink[60:140, 110:290].any()  # the inside stays visible


def test_a_quad_follows_its_corners():
    white = Image.new("RGB", (400, 400), "white")
    ink = changed(white, draw_boxes(white, [Quad(((500, 100), (900, 500), (500, 900), (100, 500)))]))
    for x, y in ((200, 40), (360, 200), (200, 360), (40, 200), (280, 120), (120, 280)):
        assert ink[y - 4 : y + 5, x - 4 : x + 5].any()
    assert not ink[150:250, 150:250].any() and not ink[:30].any() and not ink[:80, :80].any()


def colours(image: Image.Image) -> set[str]:
    return {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in image.getcolors(10**6)} & set(PALETTE)


def test_colours_belong_to_labels():
    white = Image.new("RGB", (400, 400), "white")
    dog, cat = Box(100, 100, 300, 300, label="dog"), Box(600, 600, 900, 900, label="cat")
    alone, both = colours(draw_boxes(white, [dog])), colours(draw_boxes(white, [dog, cat]))
    assert len(alone) == 1 and alone < both  # the dog keeps its colour, the cat gets another
    assert colours(draw_boxes(white, [dog, Box(600, 600, 900, 900, label="dog")])) == alone


def test_twelve_labels_have_twelve_colours():
    white = Image.new("RGB", (1200, 1200), "white")
    boxes = [Box(80 * i, 0, 80 * i + 60, 999, label=f"thing {i}") for i in range(12)]
    assert colours(draw_boxes(white, boxes)) == set(PALETTE)


@pytest.mark.parametrize(
    "label",
    [
        "红色圆圈",
        "Ünïcödé naïve",
        "\N{DOG FACE}",
        "two\nlines\tand tabs",
        "",
        "   ",
        "word " * 200,
        "w" * 500,
        None,
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (20, 5), (5, 300), (224, 224)])
def test_any_label_fits_into_any_image(label, size):
    boxes = [Box(0, 0, 999, 999, label=label, score=0.5), Box(900, 900, 100, 100, label=label)]
    drawn = draw_boxes(Image.new("RGB", size, "white"), [*boxes, Quad(((0, 0),) * 4, label=label)])
    assert drawn.size == size and drawn.mode == "RGB"


def test_a_label_stays_inside_the_image():
    """A plate at the corner is pushed inwards: the same ink as in the middle, none cut off."""
    white = Image.new("RGB", (300, 300), "white")
    plates = []
    for box in (Box(400, 400, 405, 405, label="corner"), Box(994, 994, 999, 999, label="corner")):
        ink = changed(draw_boxes(white, [Box(box.x1, box.y1, box.x2, box.y2)]), draw_boxes(white, [box]))
        plates.append(int(np.ptp(np.flatnonzero(ink.any(axis=0)))))
    assert abs(plates[0] - plates[1]) <= 6
