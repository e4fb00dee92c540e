"""Attacks 16 to 22 (docs/SERVING.md), and 43 of our own: images that are made to cost time or memory, or to make the
server talk."""

import base64
import binascii
import contextlib
import io
import re
import struct
import subprocess
import warnings
import zlib
from collections.abc import Callable
from typing import NoReturn
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pace import at_most
from PIL import Image

from qwenvl.images import preprocess
from qwenvl.serve.limits import Limits
from qwenvl.serve.media import FORMATS, RefusedMedia, decode_data_url, open_upload, read_source

LIMITS = Limits()
RNG = np.random.default_rng(0)
COLOUR = Image.fromarray(RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG whose header may say anything."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def resized(file: bytes, width: int, height: int) -> bytes:
    """The same file with other sizes in its header, of each format that is opened."""
    data = bytearray(file)
    match file[:2]:
        case b"\xff\xd8":
            at = data.find(b"\xff\xc0") + 5
            data[at : at + 4] = struct.pack(">HH", height, width)
        case b"\x89P":
            data[16:24] = struct.pack(">II", width, height)
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        case b"GI":
            data[6:10] = struct.pack("<HH", width, height)
            at = data.find(b",", 13 + 3 * (2 << (data[10] & 7)))
            data[at + 5 : at + 9] = struct.pack("<HH", width, height)
        case b"BM":
            data[18:26] = struct.pack("<ii", width, height)
        case b"RI":  # lossless
            data[21:25] = struct.pack(
                "<I", (width - 1 & 0x3FFF) | (height - 1 & 0x3FFF) << 14 | data[24] >> 4 << 28
            )
    return bytes(data)


ENCODED = {form: encoded(COLOUR, form, **({"lossless": True} if form == "WEBP" else {})) for form in FORMATS}


def refused(data: bytes, what: str, limits: Limits = LIMITS) -> None:
    with pytest.raises(RefusedMedia, match=what):
        open_upload(data, limits)


@pytest.mark.parametrize("form", FORMATS)
def test_a16_decompression_bomb(form: str) -> None:
    """vllm#47010, CVE-2022-45198: a header of gigapixels. The header is believed before any memory is taken:
    40 megapixels here, where training takes 100."""
    large = (16_000, 16_000) if form != "WEBP" else (16_383, 16_383)
    with at_most(0.5):
        refused(resized(ENCODED[form], *large), "too large|too much time or memory")
        refused(resized(ENCODED[form], 7_000, 6_000), "too large|too much time or memory")
    assert open_upload(ENCODED[form], LIMITS).image.size == (60, 40)


def test_a16_limits_of_an_operator_hold() -> None:
    small = Limits(image_pixels=2_000, image_bytes=10_000)
    refused(ENCODED["PNG"], "2,000", small)
    refused(b"\xff\xd8" + bytes(10_000), "10,000 bytes", small)
    with pytest.raises(RefusedMedia, match="10,000 bytes"):
        decode_data_url("data:;base64," + "A" * 13_340, small)


OTHERS = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "PSD": b"8BPS\0\1" + bytes(40),
    "WMF": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(40), "EMF": b"\x01\x00\x00\x00" + bytes(36) + b" EMF" + bytes(60),
    "FITS": b"SIMPLE  =                    T" + bytes(2850), "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "PDF": b"%PDF-1.7\n", "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\0", "AVIF": b"\0\0\0 ftypavif" + bytes(20),
    "zip": b"PK\3\4", "text": b"hello", "HTML": b"<!doctype html>", "zeros": bytes(1000), "XBM": b"#define x_width 1\n",
}  # fmt: skip
SAVED = (
    "TIFF",
    "JPEG2000",
    "ICO",
    "PPM",
    "PCX",
    "TGA",
    "DDS",
    "SGI",
    "MSP",
    "SPIDER",
    "QOI",
    "BLP",
)


@pytest.mark.parametrize("form", [*OTHERS, *SAVED])
def test_a17_other_decoders(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2026-40192, CVE-2026-22778 (JPEG 2000), CVE-2025-48379: Pillow knows forty formats, one of which starts
    Ghostscript. Five are opened, whatever the URL says that its bytes are."""

    def no_program(*_: object, **__: object) -> NoReturn:
        raise AssertionError("another program was started")

    monkeypatch.setattr(subprocess, "Popen", no_program)
    if form in OTHERS:
        data = OTHERS[form]
    else:
        mode = {"MSP": "1", "SPIDER": "F", "BLP": "P"}.get(form, "RGB")
        try:
            data = encoded(COLOUR.resize((32, 32)).convert(mode), form)
        except (KeyError, OSError):
            pytest.skip(f"this Pillow writes no {form}")
    for said in ("image/png", "image/jpeg", "application/pdf"):
        url = f"data:{said};base64,{base64.b64encode(data).decode()}"
        refused(read_source(url, LIMITS), "no image in a format that is opened here")


PROFILE = zlib.compress(bytes(50_000_000), 9)


@pytest.mark.parametrize(
    "bomb",
    [
        [chunk(b"zTXt", b"key%d\0\0" % n + PROFILE) for n in range(20)],
        [chunk(b"iTXt", b"key\0\1\0\0\0" + PROFILE)],
        [chunk(b"iCCP", b"key\0\0" + PROFILE)],
        [chunk(b"tEXt", b"key\0" + bytes(10_000_000))],
        [chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 700, 7, 900_000, 8) * 65_535)],
    ],
    ids=["zTXt", "iTXt", "iCCP", "tEXt", "eXIf"],
)
def test_a18_bombs_beside_the_pixels(bomb: list[bytes]) -> None:
    """CVE-2014-9601: texts and profiles of a PNG that unpack without end. They are cut out before Pillow sees the
    file, so none is unpacked, and none has anything to warn of: an EXIF block of wrong tags wrote 13 MB to the log."""
    data = ENCODED["PNG"][:33] + b"".join(bomb) + ENCODED["PNG"][33:]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with at_most(0.5):
            open_upload(data, LIMITS)
        assert open_upload(data, LIMITS).image.tobytes() == COLOUR.tobytes()
    assert said == []


def test_a18_pixels_that_unpack_to_more_than_the_image() -> None:
    """A zip bomb where the pixels are: the decoder stops at the last row."""
    bomb = png_of(60, 40, bytes(181 * 40) + bytes(50_000_000))
    with at_most(0.5):
        open_upload(bomb, LIMITS)


def test_a19_animations() -> None:
    """A GIF of 10^5 frames, of which the first is seen; frames are not even counted."""
    gif = encoded(COLOUR.resize((4, 4)).quantize(4), "GIF")
    table = 13 + 3 * (2 << (gif[10] & 7))
    frames = gif[:table] + gif[table:-1] * 100_000 + b";"
    with at_most(0.5):
        assert open_upload(frames, LIMITS).image.tobytes() == open_upload(gif, LIMITS).image.tobytes()
    first, second = COLOUR, COLOUR.rotate(180)
    for form in ("WEBP", "PNG"):
        still = {"lossless": True} if form == "WEBP" else {}
        animated = encoded(first, form, save_all=True, append_images=[second] * 20, **still)
        assert open_upload(animated, LIMITS).image.tobytes() == first.tobytes()


def test_a20_odd_sizes() -> None:
    """CVE-2026-22773 (idefics3): an image of one pixel, or a line. The model sees a square whatever the sides."""
    for size in ((1, 1), (1, 16_384), (16_384, 1), (3, 2)):
        upload = open_upload(encoded(Image.new("RGB", size, (9, 8, 7)), "PNG"), LIMITS, side=56)
        assert (upload.width, upload.height) == size and upload.image.size == (56, 56)
    refused(encoded(Image.new("RGB", (1, 16_385)), "PNG"), "16,384")
    for width, height in ((0, 40), (60, 0), (0, 0), (2**31 - 1, 1), (1, 2**32 - 1)):
        refused(resized(ENCODED["PNG"], width, height), "no pixels|damaged|too large|too much")
    refused(resized(ENCODED["GIF"], 0, 0), "no pixels|damaged|no image")
    refused(resized(ENCODED["BMP"], 0, -1), "no pixels|damaged|too large|no image")


@pytest.mark.parametrize("form", FORMATS)
def test_a20_truncated(form: str) -> None:
    """An upload that broke off: refused, or shown as far as its format can know (a BMP without its last byte)."""
    data = ENCODED[form]
    for length in {*range(0, 40), *range(40, len(data), max(1, len(data) // 40))}:
        try:
            assert open_upload(data[:length], LIMITS).image.size == (60, 40)
            assert length > len(data) * 0.9
        except RefusedMedia as error:
            assert ours(str(error))


OURS = re.compile(
    r"The data is no image in a format that is opened here \(JPEG, PNG, WEBP, GIF, BMP\)\.|An image has no pixels\."
    r"|An image is damaged and cannot be decoded\.|An image of \d+ x \d+ pixels is too large: [ -~]+"
    r"|An image would take too much time or memory to unpack; save it again, smaller\."
)


def ours(message: str) -> bool:
    """One of our own sentences, with nothing but sizes in it."""
    return OURS.fullmatch(message) is not None


def broken(number: int) -> bytes:
    """An image with a few bits turned, bytes replaced, or a part cut out, doubled or moved."""
    rng = np.random.default_rng(number)
    data = bytearray(ENCODED[FORMATS[number % len(FORMATS)]])
    at, length = int(rng.integers(0, len(data))), int(rng.integers(1, 60))
    match number // len(FORMATS) % 5:
        case 0:
            for place in rng.integers(0, min(len(data), 200), 8):
                data[place] ^= 1 << int(rng.integers(0, 8))
        case 1:
            data[at : at + length] = rng.bytes(length)
        case 2:
            del data[at : at + length]
        case 3:
            data[at:at] = data[:length] * 3
        case 4:
            data[12:40] = rng.bytes(28)
    return bytes(data)


def test_a21_error_texts_hold_nothing_of_ours() -> None:
    """CVE-2026-22778 (vLLM): `cannot identify image file <_io.BytesIO object at 0x7f...>` gave an address away,
    half of a remote execution. Of 200 broken images each is shown or refused with one of our own sentences."""
    seen = {"shown": 0, "refused": 0}
    for number in range(200):
        try:
            image = open_upload(broken(number), LIMITS).image
            assert image.mode == "RGB"
            seen["shown"] += 1
        except RefusedMedia as error:
            assert ours(str(error)), str(error)
            assert error.__cause__ is None and error.reason
            seen["refused"] += 1
    assert min(seen.values()) > 20, seen


@pytest.mark.parametrize("kind", ["scans", "fill bytes", "comments", "chunks", "blocks", "run lengths"])
def test_a43_parts_that_are_walked_one_by_one(kind: str) -> None:
    """libjpeg decodes the whole image again for each of 340,000 scans, two hours for 20 MB; Pillow walks fill bytes,
    empty comments and chunks in Python, and unpacks the run lengths of a BMP there: ten seconds that hold every
    thread."""
    large = encoded(Image.new("L", (2_000, 2_000), 128), "JPEG", progressive=True)
    jpeg, png, gif, bmp = (ENCODED[form] for form in ("JPEG", "PNG", "GIF", "BMP"))
    table, most = 13 + 3 * (2 << (gif[10] & 7)), 16_000_000
    bomb = {
        "scans": large[:-2] + large[large.rfind(b"\xff\xda") : -2] * 100_000 + b"\xff\xd9",
        "fill bytes": jpeg[:2] + b"\xff" * most + jpeg[2:],
        "comments": jpeg[:2] + b"\xff\xfe\x00\x02" * (most // 4) + jpeg[2:],
        "chunks": png[:33] + chunk(b"tEXt", b"") * (most // 12) + png[33:],
        "blocks": gif[:table] + b"!\xfe\x01a\x00" * (most // 5) + gif[table:],
        "run lengths": bmp[:30] + b"\1" + bmp[31:54] + b"\1\5" * (most // 2),
    }[kind]
    assert len(bomb) <= LIMITS.image_bytes
    with at_most(0.5):
        refused(bomb, "too much time or memory")


# ---- 22, 52, 53: data URLs ----


def test_a22_base64_in_linear_time() -> None:
    """vllm#48147: 8 MB of base64, of escapes or of white space; what grows with the square of it would take
    hours."""
    for piece in ("A", "A\r\n", "%2B", "%", "=", " ", "-_", "AAAA=", "\t", ";"):
        url = "data:image/png;base64," + piece * (8_000_000 // len(piece))
        with at_most(1), contextlib.suppress(RefusedMedia):
            decode_data_url(url, LIMITS)


def test_a22_a_data_url_is_decoded_whole_or_refused() -> None:
    """Characters that are none of base64 are not skipped, as lax decoders do: they would be a second spelling."""
    good = base64.b64encode(ENCODED["PNG"]).decode()
    for wrong in (
        good[:8] + "*" + good[8:],
        good[:8] + "=" + good[8:],
        good[:8] + "é" + good[8:],
        good.rstrip("=") + "==AA",
        "A",
    ):
        with pytest.raises(RefusedMedia, match="no base64"):
            decode_data_url(f"data:image/png;base64,{wrong}", LIMITS)
    for wrong in (
        "data:image/png;base64",
        "data:",
        "data:image/png," + good,
        f"data:;notbase64,{good}",
        "data:;base64,",
        "data:;base64,====",
    ):
        with pytest.raises(RefusedMedia, match=r"comma|not in base64|empty"):
            decode_data_url(wrong, LIMITS)


SPELLINGS: dict[str, Callable[[str], str]] = {
    "usual": lambda text: f"data:image/png;base64,{text}",
    "upper case": lambda text: f"DATA:IMAGE/PNG;BASE64,{text}",
    "charset": lambda text: f"data:image/png;charset=utf-8;base64,{text}",
    "name": lambda text: f"data:image/png;name=a%20b.png;base64,{text}",
    "no type": lambda text: f"data:;base64,{text}",
    "wrong type": lambda text: f"data:application/octet-stream;base64,{text}",
    "image/jpg": lambda text: f"data:image/jpg;base64,{text}",
    "wrapped": lambda text: "data:image/png;base64," + re.sub(r"(.{76})", "\\1\r\n", text),
    "indented": lambda text: f" \n data:image/png;base64, {text}\n",
    "percent-encoded": lambda text: "data:image/png;base64," + quote(text, safe=""),
    "percent-encoded, lower": lambda text: "data:;base64," + re.sub("%..", lambda e: e[0].lower(), quote(text, "")),
    "percent-encoded lines": lambda text: "data:image/png;base64," + text[:10] + "%0D%0A%20" + text[10:],
    "url-safe": lambda text: "data:image/png;base64," + text.replace("+", "-").replace("/", "_"),
    "no padding": lambda text: f"data:image/png;base64,{text.rstrip('=')}",
}  # fmt: skip


@given(st.binary(min_size=1, max_size=300), st.sampled_from(sorted(SPELLINGS)))
def test_a22_every_spelling_gives_the_bytes(data: bytes, spelling: str) -> None:
    """Points 52 of the API: what clients send (Open WebUI, evaluators, Azure's SDK) is read alike."""
    url = SPELLINGS[spelling](base64.b64encode(data).decode())
    assert read_source(url, LIMITS) == data


@given(st.text(max_size=60))
def test_a22_whatever_follows_data_has_one_verdict(text: str) -> None:
    try:
        data = decode_data_url(f"data:image/png;base64,{text}", LIMITS)
    except RefusedMedia:
        return
    kept = re.sub(r"%20|%09|%0[aAdD]|[\s=]|%3[dD]", "", text)
    assert len(data) == len(kept.replace("%", "")[: len(kept)]) * 3 // 4 or "%" in text
    assert binascii.b2a_base64(data, newline=False).rstrip(b"=")[:-1].decode() in _standard(kept)


def _standard(text: str) -> str:
    for escape, character in (("%2B", "+"), ("%2F", "/"), ("%2D", "-"), ("%5F", "_")):
        text = text.replace(escape, character).replace(escape.lower(), character)
    return text.replace("-", "+").replace("_", "/")


def test_the_square_is_what_the_model_would_make_of_the_whole() -> None:
    """A request of 16 photos keeps 16 squares, not 16 photos; bit for bit the same pixels."""
    photo = encoded(Image.fromarray(RNG.integers(0, 256, (300, 411, 3), dtype=np.uint8)), "JPEG")
    small = open_upload(photo, LIMITS, side=224)
    assert np.array_equal(preprocess(small.image, 224), preprocess(photo, 224))
    assert (small.width, small.height) == (411, 300)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_photos_are_turned_upright_unless_asked_otherwise(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(COLOUR, form, exif=exif)
    turned, raw = open_upload(data, LIMITS), open_upload(data, LIMITS, raw=True)
    assert (turned.width, turned.height, turned.orientation) == (40, 60, 6)
    assert (raw.width, raw.height, raw.orientation) == (60, 40, 6)
    assert turned.image.tobytes() == raw.image.transpose(Image.Transpose.ROTATE_270).tobytes()
    plain = open_upload(ENCODED[form], LIMITS)
    assert plain.orientation == 1 and plain.image.size == (60, 40)


@pytest.mark.parametrize(
    ("kind", "image", "form"),
    [
        ("palette", COLOUR.quantize(16), "GIF"),
        ("palette, transparent", COLOUR.quantize(16), "PNG"),
        ("grey", COLOUR.convert("L"), "PNG"),
        ("grey and alpha", COLOUR.convert("LA"), "PNG"),
        ("alpha", COLOUR.convert("RGBA"), "PNG"),
        ("alpha", COLOUR.convert("RGBA"), "WEBP"),
        ("black and white", COLOUR.convert("1"), "PNG"),
        ("CMYK", COLOUR.convert("CMYK"), "JPEG"),
        ("grey of 16 bits", Image.fromarray(RNG.integers(0, 65536, (40, 60), dtype=np.uint16)), "PNG"),
    ],
)
def test_every_kind_of_pixels_is_rgb_in_the_end(kind: str, image: Image.Image, form: str) -> None:
    """Point 53 of the API: what training would see, alpha dropped and not composited."""
    options = {"transparency": 0} if kind == "palette, transparent" else {}
    upload = open_upload(encoded(image, form, **options), LIMITS)
    assert upload.image.mode == "RGB" and upload.image.size == (60, 40)
    if kind.startswith("alpha") and form == "PNG":
        assert upload.image.tobytes() == image.convert("RGB").tobytes()
