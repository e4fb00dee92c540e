"""Pictures: bytes to normalised pixels (paper 2.1 and 2.2), and boxes drawn back on the picture.

    path | bytes | PIL | array --open_image--> RGB --resize--> uint8 (S, S, 3) --normalise--> float32 (3, S, S)

The squash to a square is Pillow's antialiased bicubic and the values are CLIP's, bit for bit what the released model
was trained on. Nothing here follows a URL, rotates by EXIF or composites alpha: the official pipeline does neither of
the last two, and pictures are fetched by whoever asks for them, never by a reader of text.
"""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as pillow
from PIL import ImageOps, UnidentifiedImageError

Source: TypeAlias = str | Path | bytes | pillow.Image | NDArray[np.uint8]
"""Where a picture may come from: a path, the bytes of a file, a Pillow picture, or a uint8 array (H, W[, 1, 3 or 4])."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue in [0, 1] that is subtracted (OpenAI CLIP)."""

STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue in [0, 1] that is divided by (OpenAI CLIP)."""

MAX_PIXELS = 100_000_000
"""Largest picture that is decoded: 100 megapixels, read from the header before any memory is taken."""

T = TypeVar("T")
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)
_RUNS_PROGRAMS = frozenset(
    {"EPS", "WMF"}
)  # Pillow would start Ghostscript or the operating system's renderer

_LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)
_VALUES = (_LEVELS - np.array(MEAN, np.float32)[:, None]) / np.array(STD, np.float32)[:, None]  # (3, 256)


def open_image(source: Source) -> pillow.Image:
    """The picture in RGB, as the official code sees it: alpha dropped (not composited), no EXIF rotation.

    Of an animation, the first frame. A Pillow picture that is RGB already is returned itself, not copied.
    Raises ValueError for whatever is not a picture, is damaged, has no pixels or more than `MAX_PIXELS`.
    """
    if isinstance(source, pillow.Image):
        return _decoded(source, "the Pillow picture")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(source), "the bytes given")
    if isinstance(source, str) and _URL.match(source):
        raise ValueError(
            f"A picture was given as the URL {_short(source)!r}; pictures are never fetched: "
            "download it first and give its path or its bytes."
        )
    if isinstance(source, str | Path):
        return _from_path(Path(source))
    raise ValueError(
        f"A picture cannot be made from a {type(source).__name__}; "
        "give a path, the bytes of a file, a Pillow picture or a uint8 array."
    )


def upright(picture: pillow.Image) -> pillow.Image:
    """The picture turned as its EXIF orientation asks, for phone photos that would otherwise lie on their side.

    Never done by `open_image`, because the released model saw pictures unturned. Call it on what `open_image`
    returned, or on a Pillow picture, before handing that over. Without EXIF: a copy.
    """
    return ImageOps.exif_transpose(picture)


def resize(picture: pillow.Image, size: int) -> NDArray[np.uint8]:
    """The RGB picture squashed to a `size` x `size` square (aspect ratio not kept): uint8, (size, size, 3)."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(
            f"A picture cannot be resized to {size!r} pixels a side; give a whole number of at least 1."
        )
    return np.asarray(picture.resize((size, size), pillow.Resampling.BICUBIC))


def normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(level / 255 - MEAN) / STD per channel: uint8 (H, W, 3) to float32 (3, H, W), by table, bit-exact."""
    out = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel in range(3):
        np.take(_VALUES[channel], pixels[..., channel], out=out[channel], mode="clip")
    return out


def preprocess(source: Source, size: int) -> NDArray[np.float32]:
    """What the vision encoder reads: (3, size, size), channel first, about -1.8 to 2.2.

    Equal in every bit to the official torchvision pipeline (`shared/official.md` section 2).
    """
    return normalise(resize(open_image(source), size))


def _from_path(path: Path) -> pillow.Image:
    name = f"the file {_short(str(path))!r}"
    try:
        with path.open("rb") as file:
            return _from_file(file, name)
    except FileNotFoundError:
        raise ValueError(f"No picture at {_short(str(path))!r}; check the path.") from None
    except OSError as error:
        raise ValueError(
            f"Not readable: {name} ({error.strerror or error}); give a readable picture file."
        ) from None


def _from_file(file: BinaryIO, name: str) -> pillow.Image:
    picture = _guard(lambda: pillow.open(file), name)
    if picture.format in _RUNS_PROGRAMS:
        raise ValueError(
            f"Not opened: {name} is {picture.format}, which needs an outside program; convert it to PNG."
        )
    return _decoded(picture, name)


def _decoded(picture: pillow.Image, name: str) -> pillow.Image:
    width, height = picture.size
    if width * height == 0:
        raise ValueError(
            f"A picture without pixels: {name} is {width} x {height}; both sides must be at least 1."
        )
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large(name, f"{width} x {height}"))
    _guard(picture.load, name)
    return picture if picture.mode == "RGB" else _guard(lambda: picture.convert("RGB"), name)


def _guard(decode: Callable[[], T], name: str) -> T:
    """Run one step of Pillow; its decoders raise a zoo of types on bad input, of which one ValueError is made."""
    try:
        return decode()
    except pillow.DecompressionBombError:
        raise ValueError(_too_large(name, "far larger")) from None
    except UnidentifiedImageError:
        raise ValueError(
            f"Not a picture: {name} is in no format Pillow knows; give a JPEG, PNG or WebP."
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(
            f"A damaged picture: {name} cannot be decoded ({error}); get a fresh copy of it."
        ) from error


def _from_array(array: NDArray[np.uint8]) -> pillow.Image:
    shape, dtype = tuple(array.shape), array.dtype
    if dtype != np.uint8:
        raise ValueError(
            f"A picture array must be uint8 with levels 0 to 255, got {dtype} of shape {shape}; "
            "for floats in [0, 1] give (array * 255).round().astype('uint8')."
        )
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (1, 3, 4))):
        hint = (
            "; channels come last: give array.transpose(1, 2, 0)"
            if array.ndim == 3 and shape[0] in (1, 3, 4)
            else ""
        )
        raise ValueError(
            f"A picture array must be (height, width) or (height, width, 1, 3 or 4), got {shape}{hint}."
        )
    if array.size == 0:
        raise ValueError(
            f"A picture without pixels: the array has shape {shape}; both sides must be at least 1."
        )
    if array.ndim == 3 and shape[2] == 1:
        array = array[..., 0]
    return _decoded(pillow.fromarray(np.ascontiguousarray(array)), "the array")


def _too_large(name: str, size: str) -> str:
    return f"A picture too large: {name} is {size}, the limit is {MAX_PIXELS // 10**6} megapixels; make it smaller first."


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
