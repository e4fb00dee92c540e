"""Images: bytes to normalised pixels (paper 2.1 and 2.2), through the one door for whatever comes from outside.

    path | bytes | PIL | array --open_image--> RGB --resize--> uint8 square --normalise--> float32, channels first

The squash to a square is Pillow's antialiased bicubic and the values are CLIP's, bit for bit what the released
model was trained on. EXIF rotation is not applied and alpha is dropped, not composited, because the official code
does neither; a checkpoint that says on which `ground` it learned is shown that instead. No URL is ever followed:
whoever has one fetches it first.

The door: six formats that Pillow decodes by itself (`FORMATS`), size and memory known before a pixel is decoded, no
other program started, and one verdict. `opened` is the same door for who needs the header only.
"""

import io
import os
import re
import reprlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image as pillow
from PIL import ImageFile, ImageOps, UnidentifiedImageError

from qwenvl.containers import CONTAINERS, JPEG, PNG, UnreadableImage, pixels_only
from qwenvl.files import lookalike, open_regular
from qwenvl.terminal import printable

Source: TypeAlias = str | Path | bytes | pillow.Image | np.ndarray
"""A path, the bytes of a file, a Pillow image, or a uint8 array (height, width) or (height, width, 1 | 3 | 4)."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue in [0, 1], subtracted (OpenAI CLIP)."""

STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue in [0, 1], divided by (OpenAI CLIP)."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow knows forty more: some start Ghostscript (EPS), some hold an image of another size (ICO)."""

MAX_PIXELS = 100_000_000
"""Largest image that is decoded: 100 megapixels, read from the header before any memory is taken."""

MAX_WEBP_PIXELS = 40_000_000
"""Largest WebP: its decoder takes 16 bytes a pixel, 640 MB for these, where the others take about 4."""

MAX_BYTES = 1 << 30
"""Largest file: 100 megapixels of 8 bytes fit."""

MAX_WEBP_RATIO = 100_000
"""Pixels per byte of a WebP: a white page reaches 20,000, the 34 bytes that unpack to any size millions."""

_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)

RGB: TypeAlias = tuple[int, int, int]
"""Levels of red, green and blue, 0 to 255."""

WHITE: RGB = (255, 255, 255)

T = TypeVar("T")


def open_image(
    source: Source, *, cut_deep: bool = False, formats: tuple[str, ...] = FORMATS, ground: RGB | None = None
) -> pillow.Image:
    """The image in RGB, as the official code sees it: alpha dropped (not composited), no EXIF rotation.

    With a `ground`, what is transparent shows that colour instead: the official code shows whatever colour lies under
    it, which is mostly black. Of an animation, the first frame. Grey of more than 8 bits is scaled (`_eight_bits`); the
    official code cuts it off at 255, which leaves white, and so does `cut_deep`, for comparisons with it. What a PNG
    says beside its pixels (texts, profiles) may be damaged. A Pillow image that is RGB already is returned itself, not
    copied. Raises ValueError for whatever is not an image in one of `formats`, is damaged, has no pixels or too many.
    """
    if isinstance(source, pillow.Image):
        _require_known(source)
        return _decoded(source, "the Pillow image", cut_deep, ground)
    if isinstance(source, np.ndarray):
        return _from_array(source, ground)
    if isinstance(source, str) and _URL.match(source):
        raise ValueError(
            f"An image was given as the URL {_short(source)!r}; images are never fetched: "
            "download it first and give its path or its bytes."
        )
    if not isinstance(source, str | Path | bytes):
        raise ValueError(
            f"An image cannot be made from a {type(source).__name__}; "
            "give a path, the bytes of a file, a Pillow image or a uint8 array."
        )
    with opened(source, formats) as image:
        return _decoded(image, _name(source), cut_deep, ground)


@contextmanager
def opened(source: str | Path | bytes, formats: tuple[str, ...] = FORMATS) -> Iterator[pillow.Image]:
    """The image of a file or of its bytes, its header read and its pixels not: for size, mode, format and `draft`.

    Raises UnreadableImage where there is none in one of `formats` or it is larger than the limits.
    """
    name = _name(source)
    if isinstance(source, bytes):
        yield _header(io.BytesIO(source), len(source), name, formats)
        return
    try:
        file = open_regular(Path(source))
    except FileNotFoundError:
        like = lookalike(Path(source))
        hint = "check the path" if like is None else f"{like.name!a} is there, which is written otherwise"
        raise UnreadableImage(f"No image at {_short(str(source))!r}; {hint}.", "no image") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, a pipe
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        message = f"Not readable: {name} ({printable(reason)}); give a readable image file."
        raise UnreadableImage(message, "no image") from None
    with file:
        yield _header(file, os.fstat(file.fileno()).st_size, name, formats)


def upright(image: pillow.Image) -> pillow.Image:
    """The image turned as its EXIF orientation asks: for phone photos that would lie on their side.

    Never done by `open_image`, because the released model saw images unturned: training, evaluation and answers all
    read pixels as they are stored, and boxes are counted on those. Call it on what `open_image` returned, or on a
    Pillow image, before handing that over. Without EXIF, or with EXIF that cannot be read: a copy.
    """
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's parsers raise a zoo of types
        return image.copy()


def exif_orientation(image: bytes | pillow.Image) -> int:
    """The EXIF tag of an image that turns it when it is shown: 1 (as stored) to 8; 1 where there is none to be read."""
    try:
        if isinstance(image, bytes):
            with opened(image) as header:
                return exif_orientation(header)
        found = image.getexif().get(0x0112, 1)
    except Exception:  # no image, or one of the zoo of types that Pillow's parser raises
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def resize(image: pillow.Image, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The RGB image squashed to a `size` x `size` square; its aspect ratio is not kept."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"An image cannot be {size!r} pixels a side; give a whole number of at least 1.")
    return np.asarray(image.resize((size, size), pillow.Resampling.BICUBIC))


def normalise(levels: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, "3 height width"]:
    """(level / 255 - MEAN) / STD for each channel, in float32 and in this order, as torchvision computes it."""
    pixels = levels.transpose(2, 0, 1).astype(np.float32, order="C")
    pixels /= np.float32(255)
    pixels -= np.array(MEAN, np.float32)[:, None, None]
    pixels /= np.array(STD, np.float32)[:, None, None]
    return pixels


def preprocess(
    source: Source, size: int, *, cut_deep: bool = False, ground: Sequence[int] = ()
) -> Float32[np.ndarray, "3 {size} {size}"]:
    """What the vision encoder reads: channels first, values about -1.8 to 2.2.

    Equal in every bit to what the official code computes with torchvision; for grey of more than 8 bits with `cut_deep`
    (see `open_image`), and without a `ground`.
    """
    return normalise(resize(open_image(source, cut_deep=cut_deep, ground=rgb(ground)), size))


# === The door ===


def _header(file: IO[bytes], size: int, name: str, formats: tuple[str, ...]) -> pillow.Image:
    """The undecoded image, after all that can be known of it from its first bytes was held against the limits."""
    if size > MAX_BYTES:
        raise UnreadableImage(
            f"An image too large: {name} has {size:,} bytes, the limit is {MAX_BYTES:,}; make it smaller first.",
            "decompression bomb",
        )
    start = file.read(32)
    file.seek(0)
    if start.startswith(tuple(CONTAINERS)):
        data = pixels_only(file.read(), name)
        file, size, start = io.BytesIO(data), len(data), data[:32]
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        width, height = _webp_size(start)  # Pillow takes the memory for all pixels when it opens one
        _require_size(width, height, name, MAX_WEBP_PIXELS)
        if width * height > MAX_WEBP_RATIO * size:
            raise UnreadableImage(
                f"A decompression bomb: {name} says that {size:,} bytes are {width} x {height} pixels.",
                "decompression bomb",
            )
    try:
        image = _guard(lambda: _pillow_open(file, formats), name)
    except UnreadableImage as error:
        # "no image" is also what Pillow says of a bad checksum
        if error.reason == "no image" and start.startswith((PNG, JPEG)):
            raise UnreadableImage(
                f"A damaged image: {name} cannot be decoded (its header is damaged); get a fresh copy of it.",
                "damaged image",
            ) from None
        raise
    _require_size(*image.size, name, MAX_PIXELS)
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        _require_size(_number(tags.get(322)), _number(tags.get(323)), name, MAX_PIXELS)  # of a tile
    return image


def _pillow_open(file: IO[bytes], formats: tuple[str, ...]) -> pillow.Image:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # of large images and odd tags; what matters is told in a sentence of ours
        return pillow.open(file, formats=formats)


def _webp_size(start: bytes) -> tuple[int, int]:
    """Width and height in the first 30 bytes of a WebP, of each of its three kinds; 1 x 1 where they are damaged."""
    kind = start[12:16]
    if kind == b"VP8X" and len(start) >= 30:
        return int.from_bytes(start[24:27], "little") + 1, int.from_bytes(start[27:30], "little") + 1
    if kind == b"VP8L" and len(start) >= 25:
        bits = int.from_bytes(start[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(start) >= 30:
        return (
            int.from_bytes(start[26:28], "little") & 0x3FFF or 1,
            int.from_bytes(start[28:30], "little") & 0x3FFF or 1,
        )
    return 1, 1


def _require_known(image: pillow.Image) -> None:
    """A Pillow image whose pixels are still in its file is decoded by us, hence in one of `FORMATS`."""
    lazy = isinstance(image, ImageFile.ImageFile) and getattr(image, "_im", None) is None
    if lazy and image.format not in (*FORMATS, "MPO", None):  # MPO: a JPEG with more behind it
        raise _no_image(f"the Pillow image, which is {image.format},")


def _require_size(width: int, height: int, name: str, limit: int) -> None:
    if width * height > limit:
        raise UnreadableImage(_too_large(name, f"{width} x {height}", limit), "decompression bomb")


def _number(value: object) -> int:
    return value if isinstance(value, int) else 1


def rgb(ground: Any, name: str = "ground") -> RGB | None:
    """A `ground` as a colour, None where it is empty or None; `name` is what it is called where it was read.

    Raises ValueError for what is no colour, of whatever kind.
    """
    if ground is None or (isinstance(ground, list | tuple) and not ground):
        return None
    if isinstance(ground, list | tuple) and len(ground) == 3:
        red, green, blue = ground
        if all(type(level) is int and 0 <= level <= 255 for level in ground):
            return red, green, blue
    raise ValueError(
        f"{name} is {reprlib.repr(ground)}; expected levels of red, green and blue from 0 to 255, such as "
        "[255, 255, 255]. Leave it out to drop alpha."
    )


def is_transparent(image: pillow.Image) -> bool:
    """Whether an image, opened or decoded, may have pixels that let the ground through."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def over(image: pillow.Image, ground: RGB) -> pillow.Image:
    """The image over a plain colour."""
    layer = image.convert("RGBA")
    canvas = pillow.new("RGB", layer.size, ground)
    canvas.paste(layer, (0, 0), layer)
    return canvas


def _decoded(
    image: pillow.Image, name: str, cut_deep: bool = False, ground: RGB | None = None
) -> pillow.Image:
    width, height = image.size
    if width * height == 0:
        raise UnreadableImage(
            f"An image without pixels: {name} is {width} x {height}; both sides must be at least 1.",
            "image without pixels",
        )
    _require_size(width, height, name, MAX_PIXELS)
    _guard(image.load, name)
    deep = image.mode.startswith(("I", "F")) and not cut_deep
    eight = _eight_bits(image, name) if deep else image
    if eight.mode == "La":  # which Pillow turns into this alone
        eight = eight.convert("LA")
    if ground is not None and is_transparent(eight):
        return _guard(lambda: over(eight, ground), name)
    if eight.mode == "RGB":
        return eight
    return _guard(lambda: eight.convert("RGB"), name)


def _eight_bits(image: pillow.Image, name: str) -> pillow.Image:
    """Grey of 16 or 32 bits or in floats as 8 bits; Pillow's own conversion cuts off whatever is above 255.

    16 bits lose their lower half, as those of a colour PNG do. Whole numbers of 32 bits are taken for 8 bits if none
    is above 255, else for 16; floats for levels of [0, 1], else of [0, 255]. Others are refused: nobody knows which
    is white.
    """
    levels = np.asarray(image)
    low, high = float(levels.min()), float(levels.max())
    if image.mode.startswith("I;16"):
        bits = _number(
            (getattr(image, "tag_v2", None) or {}).get(258, (16,))[0]
        )  # a TIFF may hold 12 of them
        scaled = levels >> max(0, min(bits, 16) - 8)
    elif image.mode == "I" and low >= 0 and high < 1 << 16:
        scaled = levels >> 8 if high > 255 else levels
    elif image.mode == "F" and low >= 0 and high <= 255:  # a NaN fails
        scaled = np.rint(levels * 255 if high <= 1 else levels)
    else:
        raise UnreadableImage(
            f"An image of unknown scale: {name} has grey levels from {low:g} to {high:g}; write it with 8 or 16 bits.",
            "unknown grey scale",
        )
    eight = pillow.fromarray(scaled.astype(np.uint8))
    eight.info = dict(image.info)
    key = eight.info.pop("transparency", None)  # a level of the file's own depth
    if isinstance(key, int):
        eight.putalpha(pillow.fromarray(np.where(levels == key, 0, 255).astype(np.uint8)))
    return eight


def _guard(decode: Callable[[], T], name: str) -> T:
    """Run one step of Pillow; its decoders raise a zoo of types on bad input, of which one ValueError is made."""
    try:
        return decode()
    except pillow.DecompressionBombError as error:
        size = re.search(r"\d+", str(error))
        message = _too_large(name, size[0] if size else "too many", MAX_PIXELS)
        raise UnreadableImage(message, "decompression bomb") from None
    except UnidentifiedImageError:
        raise _no_image(name) from None
    except MemoryError:
        raise
    except Exception as error:
        raise UnreadableImage(
            f"A damaged image: {name} cannot be decoded ({printable(error)}); get a fresh copy of it.",
            "damaged image",
        ) from error


def _no_image(name: str) -> UnreadableImage:
    return UnreadableImage(
        f"Not an image: {name} is in no format that is opened ({', '.join(FORMATS)}); convert it to PNG.",
        "no image",
    )


def _from_array(array: np.ndarray, ground: RGB | None) -> pillow.Image:
    shape, dtype = tuple(array.shape), array.dtype
    if dtype != np.uint8:
        raise ValueError(
            f"An image array must be uint8 with levels 0 to 255, got {dtype} of shape {shape}; "
            "for floats in [0, 1] give (array * 255).round().astype('uint8')."
        )
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))):
        hint = (
            "; channels come last: give array.transpose(1, 2, 0)"
            if array.ndim == 3 and shape[0] in (1, 3, 4)
            else ""
        )
        raise ValueError(
            f"An image array must be (height, width) or (height, width, 1, 3 or 4), got {shape}{hint}."
        )
    if array.size == 0:
        raise ValueError(
            f"An image without pixels: the array has shape {shape}; both sides must be at least 1."
        )
    if array.ndim == 3 and shape[2] == 1:
        array = array[..., 0]
    return _decoded(pillow.fromarray(np.ascontiguousarray(array)), "the array", ground=ground)


def _too_large(name: str, size: str, limit: int) -> str:
    most = f"{limit // 10**6} megapixels"
    return f"An image too large: {name} is {size} pixels, the limit is {most}; make it smaller first."


def _name(source: str | Path | bytes) -> str:
    return "the bytes given" if isinstance(source, bytes) else f"the file {_short(str(source))!r}"


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
