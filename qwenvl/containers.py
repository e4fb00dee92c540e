"""Image files as containers: what stands beside the pixels is left out, and what costs hours to read is refused.

    JPEG   FFD8  APP0 APP1(EXIF) APP2(profile) COM ... DQT SOF DHT  SOS entropy-coded data ... FFD9
    PNG    IHDR  iCCP tEXt eXIf ... PLTE tRNS IDAT IDAT ... IEND
    WebP   RIFF  VP8X ICCP ALPH VP8 EXIF XMP

A decoder written in C walks these quickly; Pillow walks the parts before the pixels in Python, a few million of them in
ten seconds, and libjpeg decodes the whole image once more for every scan that a progressive file says it has: 60 bytes
of a large image cost 20 ms. So parts and scans are counted here first. Of all that is left out, the EXIF orientation
alone stays: everything else in texts, profiles and EXIF only gives parsers something to trip over.
"""

import re
import struct
import zlib
from collections.abc import Callable
from typing import Literal

MAX_SEGMENTS = 4_096
"""Segments of a JPEG before its pixels, and between its scans; cameras write about thirty."""

MAX_CHUNKS = 65_536
"""Chunks of a PNG (one more for every 4 KiB of it) or a WebP, blocks before the image of a GIF."""

MAX_SCANS = 64
"""Scans of a JPEG: encoders write 1 to about 15."""

MAX_RLE = 2 << 20
"""Bytes of a BMP in run lengths, which Pillow decodes in Python, a second for 6 MB."""

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"

_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_WEBP_KEPT = frozenset({b"VP8X", b"ALPH", b"VP8 ", b"VP8L", b"ANIM", b"ANMF"})
_WEBP_ANIMATED_OR_ALPHA = 0x12
_WEBP_EXIF = 0x08
_JPEG_DROPPED = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
"""APP1 to APP13, APP15 and comments; APP0 (JFIF) and APP14 (Adobe) say how colours are stored."""
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_ORIENTATION = 0x0112


class UnreadableImage(ValueError):
    """What is no image, or none that is decoded; `reason` is one of a few fixed ones, so that it can be counted."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
        """"no image", "damaged image", "decompression bomb" or "image without pixels"."""


def pixels_only(data: bytes, name: str) -> bytes:
    """The same image without what stands beside its pixels, but with its EXIF orientation if that turns it.

    JPEG, PNG and WebP; other data, and what has nothing beside its pixels, is returned itself. `name` is for messages.
    Raises UnreadableImage for too many parts, scans or run lengths, and for a JPEG whose header is no row of segments.
    """
    for start, strip in CONTAINERS.items():
        if data.startswith(start):
            return strip(data, name)
    return data


# === JPEG ===


def _jpeg(data: bytes, name: str) -> bytes:
    kept, at, orientation = [JPEG], 2, 1
    for _ in range(MAX_SEGMENTS):
        if at + 4 > len(data):
            break  # cut off, which the decoder says
        if data[at] != 0xFF:
            raise _damaged(name)
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == 0 or marker in _JPEG_WITHOUT_LENGTH:
            at += 2
            continue
        if marker == 0xDA:
            _require_few_scans(data, at, name)
            kept.append(data[at:])
            break
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker not in _JPEG_DROPPED:
            kept.append(data[at:end])
        elif marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0" and orientation == 1:
            orientation = _exif_orientation(data[at + 10 : end])
        at = max(end, at + 2)
    else:
        raise _bomb(name, f"has more than {MAX_SEGMENTS:,} segments before its pixels")
    if orientation != 1:
        exif = b"Exif\0\0" + _exif(orientation)
        kept.insert(1, b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif)
    return data if sum(map(len, kept)) == len(data) else b"".join(kept)


def _require_few_scans(data: bytes, at: int, name: str) -> None:
    """Follows markers from the first scan to the end of the image, as libjpeg does."""
    scans = 0
    for _ in range(MAX_SEGMENTS):
        marker = data[at + 1]
        if marker == 0xD9:
            return
        if marker == 0xDA and (scans := scans + 1) > MAX_SCANS:
            raise _bomb(name, f"has more than {MAX_SCANS} scans")
        length = 0 if marker in _JPEG_WITHOUT_LENGTH else int.from_bytes(data[at + 2 : at + 4], "big")
        found = _NEXT_MARKER.search(data, at + 2 + length)
        if found is None:
            return
        at = found.start()
    raise _bomb(name, f"has more than {MAX_SEGMENTS:,} segments between its scans")


# === PNG ===


def _png(data: bytes, name: str) -> bytes:
    kept, at, orientation = [PNG], 8, 1
    for _ in range(MAX_CHUNKS + len(data) // 4096):
        if at + 12 > len(data):
            break
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind in _PNG_KEPT:
            kept.append(data[at:end])
        elif kind == b"eXIf":
            orientation = _exif_orientation(data[at + 8 : end - 4])
        at = end
        if kind == b"IEND":
            break
    else:
        raise _bomb(name, "has more chunks than any image")
    if orientation != 1:
        body = b"eXIf" + _exif(orientation)
        kept.insert(2, struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
    return data if sum(map(len, kept)) == len(data) else b"".join(kept)


# === WebP, GIF, BMP ===


def _webp(data: bytes, name: str) -> bytes:
    if data[8:16] != b"WEBPVP8X":
        return data  # the simple kinds hold pixels only
    kept, at, orientation = [], 12, 1
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            break
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        if kind in _WEBP_KEPT:
            kept.append(data[at:end])
        elif kind == b"EXIF":
            orientation = _exif_orientation(data[at + 8 : at + 8 + size])
        at = end
    else:
        raise _bomb(name, "has more chunks than any image")
    if not kept or len(kept[0]) < 18:
        return data  # damaged, which the decoder says
    flags = kept[0][8] & _WEBP_ANIMATED_OR_ALPHA
    if orientation != 1:
        exif = _exif(orientation)
        flags |= _WEBP_EXIF
        kept.append(b"EXIF" + struct.pack("<I", len(exif)) + exif)
    kept[0] = kept[0][:8] + bytes([flags]) + kept[0][9:]
    missing = max(0, at - len(data))  # a file that was cut off stays one
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body) + missing) + body


def _gif(data: bytes, name: str) -> bytes:
    flags = data[10] if len(data) > 10 else 0
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(MAX_CHUNKS):
        kind = data[at : at + 1]
        if kind in (b",", b";", b""):  # the first image, or none
            return data
        at += 1
        if kind != b"!":  # Pillow looks for the next block byte by byte
            continue
        at += 1
        while size := data[at] if at < len(data) else 0:
            at += 1 + size
        at += 1
    raise _bomb(name, f"has more than {MAX_CHUNKS:,} blocks before its pixels")


def _bmp(data: bytes, name: str) -> bytes:
    if (
        len(data) > MAX_RLE
        and int.from_bytes(data[14:18], "little") >= 40
        and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0")
    ):
        raise _bomb(name, f"has more than {MAX_RLE:,} bytes of run lengths")
    return data


# === Parts ===


def _exif_orientation(exif: bytes) -> int:
    """The orientation in the first directory of an EXIF block: 1 (as stored) to 8; 1 where there is none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if exif[:2] == b"II" else "big"
    if exif[:2] not in (b"II", b"MM"):
        return 1
    first = int.from_bytes(exif[4:8], order) + 2
    entries = int.from_bytes(exif[first - 2 : first], order)
    for at in range(first, first + 12 * min(entries, 512), 12):
        if int.from_bytes(exif[at : at + 2], order) == _ORIENTATION:
            size = _EXIF_SIZES.get(int.from_bytes(exif[at + 2 : at + 4], order), 0)
            value = int.from_bytes(exif[at + 8 : at + 8 + size], order)
            return value if 1 <= value <= 8 else 1
    return 1


def _exif(orientation: int) -> bytes:
    """An EXIF block that says nothing else."""
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, _ORIENTATION, 3, 1, orientation, 0)


def _damaged(name: str) -> UnreadableImage:
    return UnreadableImage(
        f"A damaged image: {name} cannot be decoded (its header is damaged); get a fresh copy of it.",
        "damaged image",
    )


def _bomb(name: str, problem: str) -> UnreadableImage:
    return UnreadableImage(
        f"A decompression bomb: {name} {problem}; save it again with another program.", "decompression bomb"
    )


_EXIF_SIZES = {1: 1, 3: 2, 4: 4}  # BYTE, SHORT, LONG

CONTAINERS: dict[bytes, Callable[[bytes, str], bytes]] = {
    JPEG: _jpeg,
    PNG: _png,
    b"RIFF": _webp,
    b"GIF8": _gif,
    b"BM": _bmp,
}
"""How the files begin that `pixels_only` takes apart, and what does it."""
