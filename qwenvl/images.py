"""Pictures: bytes to normalised pixels (paper 2.1 and 2.2), and boxes drawn back on the picture.

    path | bytes | PIL | array --open_image--> RGB --resize--> uint8 square --normalise--> float32, channels first

The squash to a square is Pillow's antialiased bicubic and the values are CLIP's, bit for bit what the released
model was trained on. EXIF rotation is not applied and alpha is dropped, not composited, because the official code
does neither. No URL is ever followed: whoever has one fetches it first.
"""

import functools
import io
import math
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image as pillow
from PIL import ImageColor, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from qwenvl.markup import Box, Quad

Source: TypeAlias = str | Path | bytes | pillow.Image | np.ndarray
"""A path, the bytes of a file, a Pillow picture, or a uint8 array (height, width) or (height, width, 1 | 3 | 4)."""

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue in [0, 1], subtracted (OpenAI CLIP)."""

STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue in [0, 1], divided by (OpenAI CLIP)."""

MAX_PIXELS = 100_000_000
"""Largest picture that is decoded: 100 megapixels, read from the header before any memory is taken."""

_URL = re.compile(r"(?:[a-z][a-z0-9+.-]+://|data:)", re.IGNORECASE)
_RUNS_PROGRAMS = frozenset({"EPS", "WMF"})  # Pillow would start Ghostscript or the system's own renderer

PALETTE = (
    "#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4",
    "#f032e6", "#bfef45", "#911eb4", "#fabed4", "#469990", "#dcbeff",
)  # fmt: skip
"""Colours of boxes: far from each other, and told from most pictures by the dark rim around them."""

_FONTS = (
    "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc", "PingFang.ttc", "uming.ttc",
    "DejaVuSans.ttf", "arial.ttf", "Arial Unicode.ttf",
)  # fmt: skip

T = TypeVar("T")
Rectangle: TypeAlias = tuple[int, int, int, int]


def open_image(source: Source) -> pillow.Image:
    """The picture in RGB, as the official code sees it: alpha dropped (not composited), no EXIF rotation.

    Of an animation, the first frame. A Pillow picture that is RGB already is returned itself, not copied.
    Raises ValueError for whatever is not a picture, is damaged, has no pixels or more than `MAX_PIXELS`.
    """
    if isinstance(source, pillow.Image):
        return _decoded(source, "the Pillow picture")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes):
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


def upright(image: pillow.Image) -> pillow.Image:
    """The picture turned as its EXIF orientation asks: for phone photos that would lie on their side.

    Never done by `open_image`, because the released model saw pictures unturned. Call it on what `open_image`
    returned, or on a Pillow picture, before handing that over. Without EXIF: a copy.
    """
    return ImageOps.exif_transpose(image)


def exif_orientation(data: bytes) -> int:
    """The EXIF tag of an image file that turns it when it is shown: 1 (as stored) to 8; 1 where there is none."""
    try:
        found = (
            pillow.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "TIFF")).getexif().get(0x0112, 1)
        )
    except Exception:  # no such file, or damaged EXIF: shown as stored
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def resize(image: pillow.Image, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The RGB picture squashed to a `size` x `size` square; its aspect ratio is not kept."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"A picture cannot be {size!r} pixels a side; give a whole number of at least 1.")
    return np.asarray(image.resize((size, size), pillow.Resampling.BICUBIC))


def normalise(levels: UInt8[np.ndarray, "height width 3"]) -> Float32[np.ndarray, "3 height width"]:
    """(level / 255 - MEAN) / STD for each channel, in float32 and in this order, as torchvision computes it."""
    pixels = levels.transpose(2, 0, 1).astype(np.float32, order="C")
    pixels /= np.float32(255)
    pixels -= np.array(MEAN, np.float32)[:, None, None]
    pixels /= np.array(STD, np.float32)[:, None, None]
    return pixels


def preprocess(source: Source, size: int) -> Float32[np.ndarray, "3 {size} {size}"]:
    """What the vision encoder reads: channels first, values about -1.8 to 2.2.

    Equal in every bit to what the official code computes with torchvision.
    """
    return normalise(resize(open_image(source), size))


def _from_path(path: Path) -> pillow.Image:
    name = f"the file {_short(str(path))!r}"
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise ValueError(f"No picture at {_short(str(path))!r}; check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"Not readable: {name} ({reason}); give a readable picture file.") from None
    with file:
        return _from_file(file, name)


def _from_file(file: io.BytesIO | io.BufferedReader, name: str) -> pillow.Image:
    image = _guard(lambda: pillow.open(file), name)
    if image.format in _RUNS_PROGRAMS:
        raise ValueError(
            f"Not opened: {name} is {image.format}, which needs an outside program; convert it to PNG."
        )
    return _decoded(image, name)


def _decoded(image: pillow.Image, name: str) -> pillow.Image:
    width, height = image.size
    if width * height == 0:
        raise ValueError(
            f"A picture without pixels: {name} is {width} x {height}; both sides must be at least 1."
        )
    if width * height > MAX_PIXELS:
        raise ValueError(_too_large(name, f"{width} x {height}"))
    _guard(image.load, name)
    return image if image.mode == "RGB" else _guard(lambda: image.convert("RGB"), name)


def _guard(decode: Callable[[], T], name: str) -> T:
    """Run one step of Pillow; its decoders raise a zoo of types on bad input, of which one ValueError is made."""
    try:
        return decode()
    except pillow.DecompressionBombError as error:
        size = re.search(r"\d+", str(error))
        raise ValueError(_too_large(name, size[0] if size else "too many")) from None
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


def _from_array(array: np.ndarray) -> pillow.Image:
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
    limit = f"{MAX_PIXELS // 10**6} megapixels"
    return f"A picture too large: {name} is {size} pixels, the limit is {limit}; make it smaller first."


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


# ---- Boxes on the picture -----------------------------------------------------------------------------------


def draw_boxes(image: Source, boxes: Iterable[Box | Quad]) -> pillow.Image:
    """A copy of the picture with every box and quadrilateral outlined, and its label and score beside it.

    Coordinates are the model's, [0, 1000) of each side. Boxes of one label share a colour, which follows from the
    label itself, so it stays from picture to picture unless two labels of one picture would share it. Lines and
    letters grow with the picture; letters the built-in font lacks come from a font of the system, else become "?".
    """
    canvas = open_image(image).copy()
    boxes = list(boxes)
    colours = _colours(box.label for box in boxes)
    width = max(2, round(math.sqrt(canvas.width * canvas.height) / 300))
    corners = [_corners(box, canvas) for box in boxes]
    for box, points in zip(boxes, corners, strict=True):
        _outline(canvas, points, width, colours[box.label])
    taken: list[Rectangle] = []
    for box, points in zip(boxes, corners, strict=True):
        if text := _caption(box):
            taken.append(_tag(canvas, text, points, width, colours[box.label], taken))
    return canvas


def _colours(labels: Iterable[str | None]) -> dict[str | None, str]:
    """A colour for each label: the one its spelling points at, or the next that is still free on this picture."""
    colours: dict[str | None, str] = {}
    for label in dict.fromkeys(labels):
        start = zlib.crc32((label or "").strip().lower().encode()) % len(PALETTE)
        order = PALETTE[start:] + PALETTE[:start]
        colours[label] = next((colour for colour in order if colour not in colours.values()), order[0])
    return colours


def _corners(box: Box | Quad, canvas: pillow.Image) -> list[tuple[float, float]]:
    if isinstance(box, Quad):
        return list(box.to_pixels(*canvas.size))
    left, top, right, bottom = box.to_pixels(*canvas.size)
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _outline(canvas: pillow.Image, points: list[tuple[float, float]], width: int, colour: str) -> None:
    """A closed line through the points over a thin dark rim, smoothed by drawing it larger than it will be."""
    xs, ys = zip(*points, strict=True)
    margin = 2 * width
    left, top = int(min(xs)) - margin, int(min(ys)) - margin
    across, down = int(max(xs)) + margin - left, int(max(ys)) + margin - top
    scale = 3 if across * down <= 4_000_000 else 1
    path = [((x - left) * scale, (y - top) * scale) for x, y in points]
    for ink, pen, opacity in (("black", width + 2, 150), (colour, width, 255)):
        mask = pillow.new("L", (across * scale, down * scale))
        ImageDraw.Draw(mask).line([*path, *path[:2]], fill=opacity, width=pen * scale, joint="curve")
        canvas.paste(ink, (left, top), mask.reduce(scale))


def _caption(box: Box | Quad) -> str:
    """The label on one line, cut where no picture has room, with the score (a probability) when there is one."""
    words = _short(" ".join((box.label or "").split()), limit=80).split()
    return " ".join([*words, f"{box.score:.2f}"] if box.score is not None else words)


def _tag(
    canvas: pillow.Image,
    text: str,
    points: list[tuple[float, float]],
    width: int,
    colour: str,
    taken: list[Rectangle],
) -> Rectangle:
    """Write the text on a plate that touches the outline, wholly inside the picture, off the plates before it."""
    text, font = _fitted(text, canvas, width)
    ascent, descent = font.getmetrics()
    pad = max(2, width)
    across, down = math.ceil(font.getlength(text)) + 2 * pad, ascent + descent + pad
    left, top = min(x for x, _ in points) - width / 2, min(y for _, y in points) - width / 2
    right, bottom = max(x for x, _ in points) + width / 2, max(y for _, y in points) + width / 2
    places = [(x, y) for y in (top - down, bottom, top, bottom - down) for x in (left, right - across)]
    plates = []
    for x, y in places:
        x = round(min(max(x, 0), canvas.width - across))
        y = round(min(max(y, 0), canvas.height - down))
        plates.append((x, y, x + across, y + down))
    plate = next((p for p in plates if not any(_overlap(p, other) for other in taken)), plates[0])
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((plate[0], plate[1], plate[2] - 1, plate[3] - 1), fill=colour)
    red, green, blue = ImageColor.getrgb(colour)[:3]
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
    draw.text((plate[0] + pad, plate[1] + pad / 2), text, fill=ink, font=font)
    return plate


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _fitted(text: str, canvas: pillow.Image, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text and a font in which it fits the picture: first smaller letters, then fewer."""
    available = canvas.width - 2 * max(2, width)
    size = max(12, round(math.sqrt(canvas.width * canvas.height) / 36))
    text, font = _readable(text, size)
    if (length := font.getlength(text)) > available:
        text, font = _readable(text, max(10, int(size * available / length)))
    short = text
    while len(text) > 1 and font.getlength(short) > available:
        text = text[:-1]
        short = text.rstrip() + "..."
    return short, font


def _readable(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """A font that has every letter of the text; where none has, the text with "?" for what cannot be drawn."""
    builtin = _font(None, size)
    assert builtin is not None
    if text.isascii():
        return text, builtin
    for name in _FONTS:
        font = _font(name, size)
        if font is not None and all(map(functools.partial(_has, font), text)):
            return text, font
    plain = unicodedata.normalize("NFKD", text)  # an accent is lost before its letter is
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return re.sub(r"[^\x20-\x7e]+", "?", plain), builtin


@functools.lru_cache(maxsize=32)
def _font(name: str | None, size: int) -> ImageFont.FreeTypeFont | None:
    """A font of the system by its file name, None where it is not installed; the name None is Pillow's own."""
    if name is None:
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
        return font
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether the font draws the letter as anything but its sign for a missing one."""
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))
