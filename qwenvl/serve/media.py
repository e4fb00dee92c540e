"""Images of requests: from a data URL to upright pixels, with nothing that could name a file in between.

    "data:image/png;base64,iVBO..." --decode_data_url--> bytes --open_upload--> RGB, upright
    "https://cdn.example/cat.jpg"   --Fetcher (absent unless hosts are named)--> bytes

A source is one of these two and never a path: `read_source` takes text from a stranger and returns bytes. What the URL
claims its bytes to be is ignored; their first bytes decide. All messages are ours: what Pillow says names addresses
and files of this machine.
"""

import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import Image as pillow

from qwenvl.images import UnreadableImage, exif_orientation, open_image, opened, rgb, upright
from qwenvl.serve.limits import Limits

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is decoded for strangers: five formats whose decoders are fuzzed daily, none that holds another format."""

_HEAD = re.compile(r"data:([^,]{0,255}),", re.ASCII | re.IGNORECASE)
_WHITE = b" \t\r\n\f\v"
_ESCAPES = {
    b"%2b": b"+",
    b"%2f": b"/",
    b"%3d": b"=",
    b"%2d": b"-",
    b"%5f": b"_",
    b"%0a": b"",
    b"%0d": b"",
    b"%20": b"",
    b"%09": b"",
}
_URLSAFE = bytes.maketrans(b"-_", b"+/")


class RefusedMedia(ValueError):
    """An image that is not taken; the message is for the client, `reason` is one of a few words for the metrics."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@runtime_checkable
class Fetches(Protocol):
    """What gets an image from a host that the operator named (`qwenvl.serve.fetch.Fetcher`)."""

    def fetch(self, url: str) -> bytes:
        """The bytes behind a URL. Raises RefusedMedia."""


class Fetched:
    """The images of one request that are URLs, fetched before any is opened: fetching waits, opening works."""

    def __init__(self, urls: Iterable[str], fetcher: Fetches) -> None:
        """In order, up to the first that is refused."""
        self._found: dict[str, bytes | RefusedMedia] = {}
        for url in dict.fromkeys(urls):
            try:
                self._found[url] = fetcher.fetch(url)
            except RefusedMedia as error:
                self._found[url] = error
                return

    def fetch(self, url: str) -> bytes:
        """The bytes behind a URL. Raises RefusedMedia as the fetcher did."""
        found = self._found[url]
        if isinstance(found, RefusedMedia):
            raise found
        return found


@dataclass(frozen=True, kw_only=True)
class Upload:
    """An image of a request, ready for the model."""

    image: pillow.Image
    """RGB; a square where a `side` was asked for, as the model would squash it."""
    width: int
    """Pixels as it is shown, before any squashing: boxes are counted on these."""
    height: int
    """See `width`."""
    orientation: int
    """The EXIF tag that it came with (1: as stored). It has been obeyed unless the upload was opened raw."""


def read_source(url: object, limits: Limits, fetcher: Fetches | None = None) -> bytes:
    """The encoded image that a part of a request holds (data URL) or names (a URL of an allowed host).

    Raises RefusedMedia for everything else, paths and other schemes among them, without looking whether they exist.
    """
    if not isinstance(url, str):
        raise RefusedMedia(
            "An image is given as a string that holds a data URL (data:image/png;base64,...).", "type"
        )
    text = url.strip(" \t\r\n")
    if text[:5].lower() == "data:":
        return decode_data_url(text, limits)
    if fetcher is not None and (remote := remote_url(text)) is not None:
        return fetcher.fetch(remote)
    raise RefusedMedia(
        "An image is given as a data URL (data:image/png;base64,...); this server opens no files and "
        "fetches nothing but from hosts that it was started with.",
        "scheme",
    )


def remote_url(url: object) -> str | None:
    """What a fetcher would be asked for, where a source is a URL of the web."""
    text = url.strip(" \t\r\n") if isinstance(url, str) else ""
    return text if text[:8].lower().startswith(("https://", "http://")) else None


def decode_data_url(url: str, limits: Limits) -> bytes:
    """The bytes of a data URL in base64, of any alphabet (`+/` or `-_`), wrapped, percent-encoded or unpadded.

    In a time that grows with its length. Raises RefusedMedia for what is no base64 or more than `image_bytes`.
    """
    head = _HEAD.match(url)
    if head is None:
        raise RefusedMedia("The image's data URL has no comma; write data:image/png;base64,... .", "data URL")
    if "base64" not in {each.strip().lower() for each in head[1].split(";")[1:]}:
        raise RefusedMedia(
            "The image's data URL is not in base64; write data:image/png;base64,... .", "data URL"
        )
    if not url.isascii():
        raise _not_base64()
    payload = url[head.end() :].encode("ascii")
    if b"%" in payload:
        for escape, character in _ESCAPES.items():
            payload = payload.replace(escape, character).replace(escape.upper(), character)
    payload = payload.translate(_URLSAFE, _WHITE).rstrip(b"=")
    if len(payload) * 3 // 4 > limits.image_bytes:
        raise RefusedMedia(f"An image is larger than {limits.image_bytes:,} bytes, the limit here.", "bytes")
    try:
        data = binascii.a2b_base64(payload + b"=" * (-len(payload) % 4), strict_mode=True)
    except binascii.Error:
        raise _not_base64() from None
    if not data:
        raise RefusedMedia("The image's data URL is empty.", "data URL")
    return data


def open_upload(
    data: bytes, limits: Limits, *, raw: bool = False, side: int | None = None, ground: Sequence[int] = ()
) -> Upload:
    """The first frame of an encoded image in RGB, turned upright as its EXIF asks.

    Alpha is dropped, or shows the `ground`, as the checkpoint was trained. With `raw` it is read as stored, as the
    official code does. With `side` it comes squashed to the square that the model sees (bit for bit what `preprocess`
    would make of the whole), so that no large one is kept in memory.
    Raises RefusedMedia for what is none of `FORMATS`, damaged, or beyond the limits, which the header decides.
    """
    if len(data) > limits.image_bytes:
        raise RefusedMedia(f"An image is larger than {limits.image_bytes:,} bytes, the limit here.", "bytes")
    try:
        with opened(data, FORMATS) as header:
            _require_size(*header.size, limits)
            orientation = exif_orientation(header)
        image = open_image(data, formats=FORMATS, ground=rgb(ground))
    except UnreadableImage as error:
        raise _refusal(error) from None
    if not raw:
        image = upright(image)
    width, height = image.size
    if side is not None:
        square = pillow.new(
            "RGB", (side, side)
        )  # without what a file says beside its pixels, a GIF's comments
        square.paste(image.resize((side, side), pillow.Resampling.BICUBIC))
        image = square
    return Upload(image=image, width=width, height=height, orientation=orientation)


def _require_size(width: int, height: int, limits: Limits) -> None:
    if max(width, height) > limits.image_side or width * height > limits.image_pixels:
        raise RefusedMedia(
            f"An image of {width} x {height} pixels is too large: sides may have {limits.image_side:,} pixels, "
            f"the whole {limits.image_pixels:,}; make it smaller (the model sees a small square anyway).",
            "pixels",
        )


def _refusal(error: UnreadableImage) -> RefusedMedia:
    said = {
        "no image": f"The data is no image in a format that is opened here ({', '.join(FORMATS)}).",
        "decompression bomb": "An image would take too much time or memory to unpack; save it again, smaller.",
        "image without pixels": "An image has no pixels.",
        "unknown grey scale": "An image has grey levels of unknown scale; write it with 8 or 16 bits.",
    }
    return RefusedMedia(said.get(error.reason, "An image is damaged and cannot be decoded."), error.reason)


def _not_base64() -> RefusedMedia:
    return RefusedMedia("The image's data URL holds characters that are no base64.", "data URL")
