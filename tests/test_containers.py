"""Image files without what stands beside their pixels: the same pixels, the same orientation, and nothing else."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from qwenvl.containers import MAX_CHUNKS, MAX_RLE, MAX_SCANS, MAX_SEGMENTS, UnreadableImage, pixels_only
from qwenvl.images import exif_orientation, open_image, upright

RNG = np.random.default_rng(0)
COLOUR = Image.fromarray(RNG.integers(0, 256, (33, 50, 3), dtype=np.uint8))
EXIF = Image.Exif()
EXIF[0x0112], EXIF[0x010F], EXIF[0x8298] = 6, "A camera", "somebody" * 50


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def texts() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 1000)
    info.add_itxt("Title", "y", zip=True)
    return info


PROFILE = b"a profile" * 40_000
BESIDE = {
    "jpeg": encoded(COLOUR, "JPEG", exif=EXIF, icc_profile=PROFILE, comment=b"hello", xmp=b"<x/>"),
    "jpeg progressive": encoded(COLOUR, "JPEG", progressive=True, exif=EXIF, subsampling=0),
    "jpeg restarts": encoded(COLOUR, "JPEG", restart_marker_blocks=1, exif=EXIF, comment=b"\xff\xda" * 9),
    "jpeg grey": encoded(COLOUR.convert("L"), "JPEG", exif=EXIF),
    "jpeg cmyk": encoded(COLOUR.convert("CMYK"), "JPEG", icc_profile=PROFILE),
    "png": encoded(COLOUR, "PNG", exif=EXIF, icc_profile=PROFILE, pnginfo=texts(), dpi=(72, 72)),
    "png palette": encoded(COLOUR.quantize(16), "PNG", exif=EXIF, transparency=3),
    "png 16 bits": encoded(
        Image.fromarray(RNG.integers(0, 65536, (20, 30), dtype=np.uint16)), "PNG", exif=EXIF
    ),
    "apng": encoded(COLOUR, "PNG", save_all=True, append_images=[COLOUR.rotate(180)]),
    "webp": encoded(COLOUR, "WEBP", lossless=True, exif=EXIF, icc_profile=PROFILE, xmp=b"<x/>"),
    "webp alpha": encoded(COLOUR.convert("RGBA"), "WEBP", exif=EXIF),
    "webp animated": encoded(COLOUR, "WEBP", save_all=True, append_images=[COLOUR.rotate(180)], exif=EXIF),
}


def by_pillow(data: bytes) -> Image.Image:
    """As Pillow decodes the file that nothing was taken from."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image


@pytest.mark.parametrize("kind", BESIDE)
def test_the_pixels_stay_and_the_rest_goes(kind: str) -> None:
    data = BESIDE[kind]
    bare = pixels_only(data, "it")
    assert len(bare) < len(data) and pixels_only(bare, "it") == bare
    for hidden in (b"profile", b"camera", b"Comment", b"hello", b"somebody", b"<x/>", b"acTL"):
        assert hidden not in bare
    ours, pillows = by_pillow(bare), by_pillow(data)
    assert ours.mode == pillows.mode and ours.tobytes() == pillows.tobytes()
    if kind != "png 16 bits":
        assert open_image(data).tobytes() == pillows.convert("RGB").tobytes()
    assert exif_orientation(ours) == exif_orientation(pillows)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_the_orientation_stays(form: str, order: str, orientation: int) -> None:
    """Of both byte orders, behind other entries; values that are none turn nothing."""
    sign = b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(order + "HHI4s", 0x0100, 3, 1, b"\1\0\0\0") + struct.pack(
        order + "HHIHH", 0x0112, 3, 1, orientation, 0
    )
    exif = b"Exif\0\0" + sign + struct.pack(order + "IH", 8, 2) + entries + bytes(4)
    data = encoded(COLOUR, form, exif=exif)
    expected = orientation if 1 <= orientation <= 8 else 1
    assert exif_orientation(data) == exif_orientation(pixels_only(data, "it")) == expected
    assert upright(open_image(data)).size == ((33, 50) if expected >= 5 else (50, 33))


def test_what_has_nothing_beside_its_pixels_is_returned_itself() -> None:
    for data in (
        encoded(COLOUR, "PNG"),
        encoded(COLOUR, "JPEG"),
        encoded(COLOUR, "WEBP"),
        encoded(COLOUR, "GIF"),
        encoded(COLOUR, "BMP"),
        b"",
        b"text",
    ):
        assert pixels_only(data, "it") is data


def refused(data: bytes, what: str) -> None:
    with pytest.raises(UnreadableImage, match=what) as caught:
        pixels_only(data, "the file 'x'")
    assert "the file 'x'" in str(caught.value)


def test_scans_are_counted_as_libjpeg_finds_them() -> None:
    """The whole image is decoded again for each: 340,000 of them fit in 20 MB of a large image, two hours' work.
    Neither an end marker in a table or a comment nor a scan in a thumbnail or behind the end misleads the count."""
    image = encoded(COLOUR, "JPEG", progressive=True)
    last = image[image.rfind(b"\xff\xda") : -2]
    for between in (b"", b"\xff\xfe\x00\x04\xff\xd9", b"\xff\xff\xff", b"\xff\x01", b"\xff\xd0"):
        refused(image[:-2] + (between + last) * MAX_SCANS + b"\xff\xd9", "scans")
        few = image[:-2] + (between + last) * 10 + b"\xff\xd9"
        assert pixels_only(few, "it") is few
    behind = image + last * 1000
    assert pixels_only(behind, "it") is behind
    before = image[:2] + b"\xff\xe1\x20\x02" + (last * 9000)[:0x2000] + image[2:]
    assert pixels_only(before, "it") == image
    refused(image[:-2] + b"\xff\xfe\x00\x02" * MAX_SEGMENTS + b"\xff\xd9", "between its scans")


def test_parts_are_few() -> None:
    """Pillow walks what stands before the pixels in Python: 20 MB of fill bytes or empty comments took ten seconds."""
    jpeg, png, gif, bmp = (encoded(COLOUR, form) for form in ("JPEG", "PNG", "GIF", "BMP"))
    for piece in (b"\xff", b"\xff\xfe\x00\x02", b"\xff\x00", b"\xff\xd0"):
        refused(jpeg[:2] + piece * (MAX_SEGMENTS + 1) + jpeg[2:], "segments")
        assert open_image(jpeg[:2] + piece * 100 + jpeg[2:]).tobytes() == open_image(jpeg).tobytes()
    chunk = bytes(4) + b"tEXt" + struct.pack(">I", zlib.crc32(b"tEXt"))
    refused(png[:33] + chunk * (MAX_CHUNKS + 2000) + png[33:], "chunks")
    assert open_image(png[:33] + chunk * 1000 + png[33:]).tobytes() == COLOUR.tobytes()
    table = 13 + 3 * (2 << (gif[10] & 7))
    for piece in (b"!\xfe\x00", b"!\xfe\x01a\x00", b"\x00"):
        refused(gif[:table] + piece * (MAX_CHUNKS + 1) + gif[table:], "blocks")
        assert open_image(gif[:table] + piece * 100 + gif[table:]).tobytes() == open_image(gif).tobytes()
    webp = encoded(COLOUR, "WEBP", exif=EXIF)
    refused(webp + b"abcd\0\0\0\0" * MAX_CHUNKS, "chunks")
    refused(bmp[:30] + b"\1" + bmp[31:54] + bytes(MAX_RLE), "run lengths")


def test_a_header_that_is_no_row_of_segments_is_damaged() -> None:
    jpeg = encoded(COLOUR, "JPEG")
    refused(jpeg[:2] + b"\0" + jpeg[2:], "damaged")


@given(st.sampled_from(sorted(BESIDE)), st.integers(0, 10**6), st.binary(max_size=12))
def test_whatever_is_damaged_has_one_verdict(kind: str, place: int, bytes_there: bytes) -> None:
    """Bytes replaced anywhere: pixels or an UnreadableImage, and no other exception; the same when it is cut there."""
    data = BESIDE[kind]
    place %= len(data)
    for broken in (data[:place] + bytes_there + data[place + len(bytes_there) :], data[:place]):
        with contextlib.suppress(UnreadableImage):
            open_image(broken)
