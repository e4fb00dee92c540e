"""Images in, pixels and drawn boxes out. That the pixels are the official ones: parity/test_preprocess_parity.py."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qwenvl.data.clean.images import difference_hash, measure
from qwenvl.drawing import PALETTE, draw_boxes
from qwenvl.images import MEAN, STD, exif_orientation, normalise, open_image, opened, preprocess, upright
from qwenvl.markup import Box, Quad

GOLDEN = Path(__file__).parent / "golden" / "preprocess"


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


# ---- what an image may come from ----


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
        ("no/such/image.png", "No image at 'no/such/image.png'; check the path"),
        ("nul\0.png", "Not readable: the file .* give a readable image file"),
        (str(GOLDEN), "Not readable: the file .*is a folder; expected a file"),
        (str(GOLDEN / "cases.json"), "Not an image: the file .* is in no format that is opened"),
        (
            "https://example.com/a.jpg",
            "URL 'https://example.com/a.jpg'; images are never fetched: download it",
        ),
        ("FILE:///etc/passwd", "images are never fetched"),
        ("data:image/png;base64,AAAA", "images are never fetched"),
        (b"", "Not an image: the bytes given"),
        (b"<svg></svg>", "Not an image: the bytes given is in no format that is opened"),
        (JPEG[: len(JPEG) // 2], "A damaged image: the bytes given cannot be decoded .*truncated"),
        (PNG[: len(PNG) // 2], "A damaged image: the bytes given cannot be decoded"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            r"Not an image: the bytes given is in no format that is opened \(JPEG, PNG, WEBP, GIF, BMP, TIFF\)",
        ),
        (
            Image.new("RGB", (0, 5)),
            "without pixels: the Pillow image is 0 x 5; both sides must be at least 1",
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
            ValueError, match=f"An image too large: .*{size} pixels, the limit is 100 megapixels"
        ):
            open_image(header + PNG[24:29] + checksum + PNG[33:])


@pytest.mark.parametrize("form", ["EPS", "ICO", "ICNS", "PCX", "PPM", "PDF"])
def test_f80_f91_a_format_outside_the_list_is_no_image_by_any_way(form, tmp_path, monkeypatch):
    """EPS starts Ghostscript, ICO and ICNS hold another size than they say: from bytes, a path, or undecoded."""
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    data = encoded(Image.fromarray(noise(64, 64)), form)
    (tmp_path / "photo.jpg").write_bytes(data)
    sources = [data, tmp_path / "photo.jpg", str(tmp_path / "photo.jpg")]
    if form not in ("PDF", "ICO"):  # Pillow only writes PDF, and decodes ICO when it opens one
        sources.append(Image.open(io.BytesIO(data)))
    for source in sources:
        with pytest.raises(ValueError, match=r"Not an image: .* is in no format that is opened"):
            open_image(source)
    if form != "PDF":
        loaded = Image.open(io.BytesIO(data)) if form != "EPS" else Image.new("RGB", (64, 64))
        loaded.load()
        assert open_image(loaded).size == loaded.size  # pixels that the caller decoded are pixels


def test_no_pipe_is_waited_for_and_no_device_is_read(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    for path, kind in ((tmp_path / "a.jpg", "pipe"), (Path("/dev/zero"), "device")):
        with pytest.raises(ValueError, match=f"Not readable: .* is a {kind}"):
            open_image(path)


def test_f98_a_webp_of_34_bytes_is_refused_before_its_memory_is_taken():
    white = encoded(Image.new("RGB", (300, 300), "white"), "WEBP", lossless=True)
    start = white.index(b"VP8L") + 9
    for side in (6_000, 10_000, 16_000):
        size = (side - 1) | (side - 1) << 14 | int.from_bytes(white[start : start + 4], "little") >> 28 << 28
        with pytest.raises(ValueError, match=r"decompression bomb|limit is 40 megapixels"):
            open_image(white[:start] + size.to_bytes(4, "little") + white[start + 4 :])
    assert open_image(encoded(Image.new("RGB", (2480, 3508), "white"), "WEBP", lossless=True)).size == (
        2480,
        3508,
    )


def test_a_tiff_whose_tile_is_larger_than_any_image_is_refused():
    tags = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 277: 1, 322: 30_000, 323: 30_000, 324: 200, 325: 64}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(200)
    with pytest.raises(ValueError, match="An image too large"):
        open_image(data)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_f69_grey_of_sixteen_bits_is_scaled(form):
    ramp = np.linspace(0, 65_535, 64 * 64).astype(np.uint16).reshape(64, 64)
    levels = np.asarray(open_image(encoded(Image.fromarray(ramp), form)))
    assert np.array_equal(levels[..., 0], ramp >> 8) and np.array_equal(levels[..., 0], levels[..., 2])
    assert np.asarray(open_image(Image.fromarray(ramp)))[-1, -1, 0] == 255
    assert (
        np.asarray(open_image(encoded(Image.fromarray(ramp), form), cut_deep=True)).mean() > 250
    )  # as the official


def test_f69_floats_and_whole_numbers_of_32_bits_are_scaled():
    grey = noise(8, 8)[..., 0]
    unit = np.asarray(open_image(Image.fromarray((grey / 255).astype(np.float32))))[..., 0]
    wide = np.asarray(open_image(encoded(Image.fromarray(grey.astype(np.float32)), "TIFF")))[..., 0]
    small = np.asarray(open_image(Image.fromarray(grey.astype(np.int32))))[..., 0]
    large = np.asarray(open_image(Image.fromarray(grey.astype(np.int32) << 8)))[..., 0]
    for levels in (unit, wide, small, large):
        assert np.array_equal(levels, grey)


@pytest.mark.parametrize(
    "levels",
    [
        np.array([[0, np.nan]], np.float32), np.array([[-1, 0]], np.float32), np.array([[0, 1e30]], np.float32),
        np.array([[-5, 0]], np.int32), np.array([[0, 1 << 20]], np.int32),
    ],
)  # fmt: skip
def test_f69_grey_of_unknown_scale_is_refused(levels):
    with pytest.raises(ValueError, match="An image of unknown scale: the Pillow image has grey levels from"):
        open_image(Image.fromarray(levels))


def chunk(kind: bytes, data: bytes, harm: int = 0) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + (zlib.crc32(kind + data) ^ harm).to_bytes(4, "big")


LONG = b"Comment\0\0" + zlib.compress(bytes(3 << 20))


@pytest.mark.parametrize(
    "remark", [chunk(b"zTXt", LONG), chunk(b"tEXt", b"a\0b", harm=1), chunk(b"iCCP", b"", harm=7)]
)
@pytest.mark.parametrize("place", [33, -12])
def test_f105_what_stands_beside_the_pixels_of_a_png_does_not_decide(remark, place, tmp_path):
    data = PNG[:place] + remark + PNG[place:]
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png"):
        assert np.array_equal(np.asarray(open_image(source)), noise(64, 64))
    assert measure(data, decode=True) == measure(data) == ("png", 64, 64)
    assert difference_hash(data) == difference_hash(PNG)


def test_exif_that_cannot_be_read_turns_nothing():
    lying = encoded(Image.new("RGB", (200, 100)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert upright(open_image(lying)).size == (200, 100) and exif_orientation(open_image(lying)) == 1
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (200, 100)), "JPEG", exif=exif)
    with opened(data) as header:
        assert exif_orientation(header) == exif_orientation(data) == exif_orientation(open_image(data)) == 6


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
