"""Whether the bytes of an image are an image, how large, and what it looks like in 64 bits.

Size and wholeness come from the headers and the last bytes: some microseconds. Only an image that leaves a doubt (no
end mark, or too few bytes for its size) is decoded, strictly; `decode=True` decodes every one.
"""

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow

from qwenvl.data.records import Pair
from qwenvl.images import MAX_PIXELS, RGB, WHITE, UnreadableImage, is_transparent, open_image, opened

SUSPICIOUS = 60
"""Pixels per byte beyond which a JPEG is decoded before it is believed; one colour all over reaches about 50."""


LARGE = 4_000_000
"""Pixels above which an image is reduced before its look is taken."""


class Facts(NamedTuple):
    """What the header of an image says."""

    extension: str
    width: int
    height: int


class BadImage(ValueError):
    """Bytes that are no image; the message is one of a few fixed reasons, so that it can be counted."""


def measure(data: bytes, *, decode: bool = False) -> Facts:
    """Format and size of an image, after making sure that it is whole.

    Raises BadImage: "no image", "truncated image", "damaged image", "decompression bomb",
    "image lies about its size", "image without pixels".
    """
    facts = _jpeg(data) if data[:2] == b"\xff\xd8" else _png(data) if data[:8] == _PNG else None
    facts = facts or _by_pillow(data)
    if facts.width < 1 or facts.height < 1:
        raise BadImage("image without pixels")
    if facts.width * facts.height > MAX_PIXELS:
        raise BadImage("decompression bomb")
    if decode or not _whole(data, facts):
        _decode(data, facts)
    return facts


_PNG = b"\x89PNG\r\n\x1a\n"
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg(data: bytes) -> Facts | None:
    """Walks the segments to the frame header; None where they are not in order."""
    position, end = 2, len(data) - 9
    while position < end and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return Facts("jpg", width, height)
        if marker == 0xFF:
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _png(data: bytes) -> Facts | None:
    if data[12:16] != b"IHDR" or len(data) < 33:
        return None
    return Facts("png", *struct.unpack_from(">II", data, 16))


def _by_pillow(data: bytes) -> Facts:
    try:
        with opened(data) as image:
            name = (image.format or "").lower()
            return Facts({"jpeg": "jpg", "mpo": "jpg", "tiff": "tif"}.get(name, name), *image.size)
    except UnreadableImage as error:
        known = data[:2] == b"\xff\xd8" or data[:8] == _PNG
        short = data[8:12] == b"WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)
        cut = error.reason == "damaged image" and (known or short)
        raise BadImage("truncated image" if cut else error.reason) from None


def _whole(data: bytes, facts: Facts) -> bool:
    match facts.extension:
        case "jpg":
            return data.rfind(b"\xff\xd9", -4096) >= 0 and facts.width * facts.height <= SUSPICIOUS * len(
                data
            )
        case "png":
            return data.rfind(b"IEND", -1024) >= 0 and _png_header_holds(data)
        case "webp":
            return int.from_bytes(data[4:8], "little") + 8 <= len(data)
        case "gif":
            return data.rstrip(b"\0")[-1:] == b";"
    return False


def _png_header_holds(data: bytes) -> bool:
    """The header's own checksum: a PNG whose size was changed afterwards fails it."""
    import zlib

    return zlib.crc32(data[12:29]) == int.from_bytes(data[29:33], "big")


def _decode(data: bytes, facts: Facts) -> None:
    """All pixels, strictly: libjpeg's warnings count as errors where simplejpeg is there to hear them."""
    try:
        mode, size = _through_the_door(data)
    except UnreadableImage as error:
        message = str(error).lower()
        cut = any(word in message for word in ("truncat", "incomplete", "premature"))
        raise BadImage(
            "truncated image" if cut and error.reason == "damaged image" else error.reason
        ) from None
    if (facts.width, facts.height) != size:
        raise BadImage("image lies about its size")
    simplejpeg = _simplejpeg() if facts.extension == "jpg" and mode in ("RGB", "L") else None
    if simplejpeg is not None:
        try:
            simplejpeg.decode_jpeg(data, "GRAY" if mode == "L" else "RGB", strict=True)
        except ValueError as error:
            lies = "premature" in str(error).lower() and data.rfind(b"\xff\xd9", -4096) >= 0
            raise BadImage("image lies about its size" if lies else "damaged image") from None


def _through_the_door(data: bytes) -> tuple[str, tuple[int, int]]:
    """Mode and size of the image that training would decode; of a JPEG the mode that it is stored in."""
    if data[:2] != b"\xff\xd8":
        image = open_image(data)
        return image.mode, image.size
    with opened(data) as header:
        return header.mode, open_image(header).size


def _simplejpeg() -> Any:
    try:
        return import_module("simplejpeg")
    except ImportError:
        return None


def difference_hash(data: bytes) -> int:
    """64 bits of an image's look (dHash): is each of 8 x 8 places darker than its right neighbour.

    Scaling, recompression and small colour changes move few bits. On a flat ground equal neighbours make most of them,
    so that drawings on white agree by chance: `look` brings what confirms. Raises BadImage.
    """
    return look(data)[0]


THUMBNAIL = 16 * 16 + 2 * 8 * 8
"""Bytes of a thumbnail: 16 x 16 of brightness, 8 x 8 of each colour difference."""

ALIKE = 32
"""Levels by which no place of two thumbnails may differ, if they are to be of one image."""


def look(data: bytes) -> tuple[int, NDArray[np.uint8]]:
    """The difference hash of an image, and its thumbnail. What is transparent is white. Raises BadImage."""
    try:
        if data[:2] == b"\xff\xd8":
            with opened(data) as header:
                header.draft("RGB", (64, 64))  # JPEG decodes at an eighth of its size
                image = header.convert("RGB")
        else:
            image = open_image(data, ground=WHITE)
            if image.width * image.height > LARGE:  # no second copy of it in other colours
                image = image.reduce(max(1, min(image.size) // 64))
        grey = np.asarray(image.convert("L").resize((9, 8), pillow.Resampling.BOX), np.int16)
        brightness, blue, red = image.convert("YCbCr").split()
        parts = [(brightness, 16), (blue, 8), (red, 8)]
        small = [np.asarray(part.resize((side, side), pillow.Resampling.BOX)).ravel() for part, side in parts]
    except UnreadableImage as error:
        raise BadImage(error.reason) from None
    except Exception:
        raise BadImage("damaged image") from None
    bits = np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes()
    return int.from_bytes(bits, "big"), np.concatenate(small)


def alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two thumbnails are of one image, scaled or compressed otherwise."""
    return bool((np.abs(one.astype(np.int16) - other.astype(np.int16)) <= ALIKE).all())


# === Transparency ===


def on_ground(ground: RGB) -> Callable[[Pair], Pair]:
    """The edit that puts a colour behind what is transparent; a pair without that comes back itself.

    It raises BadImage for an image that cannot be decoded.
    """

    def edit(pair: Pair) -> Pair:
        if pair.image is None or pair.image[:2] == b"\xff\xd8":
            return pair
        try:
            with opened(pair.image) as header:
                if not is_transparent(header) or _opaque(header):
                    return pair
            image = open_image(pair.image, ground=ground)
        except UnreadableImage as error:
            raise BadImage(error.reason) from None
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return replace(pair, image=buffer.getvalue())

    return edit


def _opaque(image: pillow.Image) -> bool:
    """Whether no pixel lets the ground through. Raises UnreadableImage."""
    try:
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    except (OSError, ValueError, SyntaxError):
        raise UnreadableImage("A damaged image.", "damaged image") from None
    return lowest == 255
