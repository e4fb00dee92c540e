"""A page of text as an image, with the exact quad of every line: SynthDoG of our own (paper A.4).

    text -> layout -> ink on paper -> fraying, grain -> elastic field and homography -> onto a background -> light, lens

Every line is followed through all of it. A page is a function of (seed, index), the look, and the fonts, texts and
backgrounds it is made from. Coordinates are pixels from the top left; pixel k covers [k, k + 1).
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from qwenvl import markup
from qwenvl.data.records import OcrPage, Skipped
from qwenvl.data.synth.pages.effects import blurred, frayed, grainy, lit, moved
from qwenvl.data.synth.pages.fonts import Fonts
from qwenvl.data.synth.pages.geometry import Field, Warp, homography_of, project, rectangle
from qwenvl.data.synth.pages.layout import Written, written_on, written_within
from qwenvl.data.synth.pages.look import Look
from qwenvl.data.synth.pages.scenery import Backgrounds, paper
from qwenvl.data.synth.pages.text import NoText, TextSource

Point = tuple[float, float]
Corners = tuple[Point, Point, Point, Point]


@dataclass(frozen=True)
class Line:
    """A line of text and its four corners in pixels of the image, clockwise from where the text begins, top first."""

    text: str
    quad: Corners


@dataclass(frozen=True, kw_only=True)
class Page:
    """An image of a page, whose lines stand in reading order."""

    image: Image.Image
    lines: tuple[Line, ...]
    source: str
    """"synthdog", "pdf" or "html"."""
    quality: int = 90
    """JPEG quality to save it with."""
    unseen: int = 0
    """Lines of the source that nobody sees, and that are none here."""
    file: bytes | None = None
    """The image as the JPEG file it came as, if it did."""

    def jpeg(self) -> bytes:
        """The image as a JPEG file."""
        if self.file is not None:
            return self.file
        buffer = io.BytesIO()
        self.image.save(buffer, "JPEG", quality=self.quality)
        return buffer.getvalue()

    def record(self, image: str | bytes) -> OcrPage:
        """The page as training material: quads on the grid of [0, 1000); `image` is where its image is kept."""
        width, height = self.image.size
        quads = tuple(
            markup.Quad.from_pixels(line.quad, width, height, label=line.text) for line in self.lines
        )
        return OcrPage(image=markup.Image(image), lines=quads, source=self.source)


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What a synthetic page was made from: the flat lines and the way they went, for whoever checks the quads."""

    written: tuple[Written, ...]
    warp: Warp


class PageMaker:
    """Synthetic pages: `PageMaker().page(seed, index)`."""

    def __init__(
        self,
        look: Look | None = None,
        *,
        fonts: Fonts | None = None,
        texts: TextSource | None = None,
        backgrounds: Backgrounds | None = None,
        tokens: int | None = None,
        cost: Callable[[str], int] = len,
    ) -> None:
        """By default SynthDoG's look, the fonts of this machine, made-up texts and surfaces.

        Made-up texts are half Chinese where a Chinese font is found, else English. With `tokens`, the lines of a page
        cost no more than that in all; `cost` is what one line costs.
        """
        self.look = look or Look()
        self.fonts = fonts or Fonts.find()
        self.texts = (texts or TextSource()).in_languages(self.fonts.languages)
        self.backgrounds = backgrounds or Backgrounds()
        self._tokens, self._cost = tokens, cost

    def page(self, seed: int, index: int) -> Page:
        """Page number `index` of the endless stream `seed`; the same two numbers, the same page."""
        return self.page_and_sheet(seed, index)[0]

    def page_and_sheet(self, seed: int, index: int) -> tuple[Page, Sheet]:
        """The page together with what it was made from."""
        rng = np.random.default_rng([seed, index])
        look = self.look
        size = _image_size(look, rng)
        fills = rng.random() < look.fullscreen
        flat_size = size if fills else _page_size(size, look, rng)
        made_from = (flat_size, look, self.fonts, self.texts, rng)
        if self._tokens is None:
            written = written_on(*made_from)
        else:
            written = written_within(self._tokens, self._cost, *made_from)
        flat = _printed(flat_size, written, look, rng)
        warp = _warp(flat_size, size, look, rng)
        canvas = self.backgrounds(rng, size, rng.uniform(*look.background_blur))
        laid, start = warp.apply(flat, size)
        *colours, opacity = laid.split()
        _cast_shadow(canvas, opacity, start, rng)
        canvas.paste(Image.merge("RGB", colours), start, opacity)
        lines = tuple(Line(line.text, _corners(line, warp, size)) for line in written)
        em = min(map(_em, written, lines), default=np.inf)
        image = _photographed(canvas, look, em, rng)
        quality = int(rng.integers(look.quality[0], look.quality[1] + 1))
        page = Page(image=image, lines=lines, source="synthdog", quality=quality)
        return page, Sheet(written=tuple(written), warp=warp)


def file_key(number: int, path: Path) -> str:
    """A key for what comes of a file: its number and its name, without the dots that end a key in a WebDataset."""
    return f"{number:06d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', path.stem)[:60]}"


def numbered_pages(
    maker: PageMaker, seed: int, numbers: Iterable[int]
) -> Iterator[tuple[str, Page | Skipped]]:
    """Pages of a stream with their keys; a damaged background and a text without fonts cost their page each."""
    for number in numbers:
        key = f"{seed:04d}-{number:09d}"
        try:
            page = maker.page(seed, number)
        except NoText as error:
            yield key, Skipped(key=key, kind="page without text", detail=str(error), source="synthdog")
        except ValueError as error:
            yield key, Skipped(key=key, kind="damaged background", detail=str(error), source="synthdog")
        else:
            empty = Skipped(key=key, kind="page without text", source="synthdog")
            yield key, page if page.lines else empty


def _image_size(look: Look, rng: np.random.Generator) -> tuple[int, int]:
    """Width and height in pixels."""
    short, aspect = rng.uniform(*look.short_side), rng.uniform(*look.aspect)
    if look.longest is not None:
        short = look.longest / aspect
    sides = round(short), round(short * aspect)
    return sides[::-1] if rng.random() < look.landscape else sides


def _page_size(size: tuple[int, int], look: Look, rng: np.random.Generator) -> tuple[int, int]:
    """Of a page that lies in the image: at most the image's size."""
    scale = 1.0 if look.longest is None else min(size) / ((look.short_side[0] + look.short_side[1]) / 2)
    short = min(rng.uniform(*look.page_short_side) * min(scale, 1.0), min(size))
    long = short * rng.uniform(*look.aspect)
    width, height = (long, short) if rng.random() < look.landscape else (short, long)
    return round(min(width, size[0])), round(min(height, size[1]))


def _printed(
    size: tuple[int, int], written: list[Written], look: Look, rng: np.random.Generator
) -> Image.Image:
    """The flat page, opaque but for a rim of one pixel, which gives the warped page a soft edge.

    In the mode RGBa, so that Pillow warps the four channels as they are: the rim has the colour of the paper.
    """
    page = paper(rng, size, rng.uniform(*look.paper))
    draw = ImageDraw.Draw(page)
    for line in written:
        draw.text(line.origin, line.text, fill=line.colour, font=line.face.sized(line.size), anchor="ls")
    page = frayed(page.convert("RGBA"), rng.uniform(*look.jitter), rng)
    page = grainy(page, rng.uniform(*look.noise), rng)
    opaque = Image.new("L", size, 0)
    opaque.paste(255, (1, 1, size[0] - 1, size[1] - 1))
    page.putalpha(opaque)
    return Image.frombuffer("RGBa", size, page.tobytes(), "raw", "RGBa", 0, 1)


def _warp(flat: tuple[int, int], size: tuple[int, int], look: Look, rng: np.random.Generator) -> Warp:
    """SynthDoG's perspective (each edge shortened), a turn, a place in the image; the page stays inside it."""
    weights = np.array([weight for weight, _ in look.perspectives])
    edges = look.perspectives[int(rng.choice(len(weights), p=weights / weights.sum()))][1]
    top, right, bottom, left = (rng.uniform(*edge) for edge in edges)
    width, height = flat
    spans = np.array([[-top * width, -left * height], [top * width, -right * height],
                      [bottom * width, right * height], [-bottom * width, left * height]]) / 2  # fmt: skip
    angle = np.radians(rng.uniform(*look.turn))
    corners = spans @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    field = Field.random(rng, rng.uniform(*look.curl) * min(flat), float(min(flat)))
    rim = project(homography_of(rectangle(width, height), corners), _rim(width, height, field))
    lowest, extent = rim.min(0), np.ptp(rim, axis=0)
    scale = min(1.0, *(np.array(size) / extent))
    place = rng.uniform(0, 1, 2) * (np.array(size) - extent * scale)
    target = (corners - lowest) * scale + place
    return Warp(flat, field, homography_of(rectangle(width, height), target))


def _rim(width: int, height: int, field: Field) -> np.ndarray:
    """Points along the edge of the page, moved by the field."""
    edge = np.linspace(0, 1, 33)[:, None]
    corners = rectangle(width, height)
    sides = [
        start + edge * (end - start) for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True)
    ]
    points = np.concatenate(sides)
    return points + field(points)


def _cast_shadow(
    canvas: Image.Image, opacity: Image.Image, start: tuple[int, int], rng: np.random.Generator
) -> None:
    """The page's own soft shadow on the surface it lies on."""
    small = (max(1, opacity.width // 8), max(1, opacity.height // 8))
    dark = rng.uniform(0.15, 0.6)
    shade = blurred(
        opacity.resize(small, Image.Resampling.BILINEAR).point([round(level * dark) for level in range(256)]),
        1.5,
    )
    reach = 0.012 * min(canvas.size)
    across, down = rng.uniform(-reach, reach, 2)
    at = (int(start[0] + across), int(start[1] + down))
    canvas.paste((0, 0, 0), at, shade.resize(opacity.size, Image.Resampling.BILINEAR))


def _photographed(canvas: Image.Image, look: Look, em: float, rng: np.random.Generator) -> Image.Image:
    """Light, then the blurs, as far as letters of `em` pixels stay legible."""
    image = lit(canvas, look, rng)
    length, angle, sigma = int(rng.choice([3, 5])), rng.uniform(0, 2 * np.pi), rng.uniform(*look.blur)
    if rng.random() < look.motion_blur:
        length = next((k for k in (length, 3) if _deviation(k) <= look.legible * em), 1)
        sigma = min(sigma, max(0.0, (look.legible * em) ** 2 - _deviation(length) ** 2) ** 0.5)
        image = moved(image, length, angle) if length > 1 else image
    return blurred(image, min(sigma, look.legible * em))


def _deviation(length: int) -> float:
    """Of a row of `length` equal weights one pixel apart."""
    return ((length * length - 1) / 12) ** 0.5


def _em(line: Written, placed: Line) -> float:
    """Pixels per em of a line as it lies in the image."""
    left, top, right, bottom = line.ink
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = placed.quad
    area = abs((cx - ax) * (dy - by) - (cy - ay) * (dx - bx)) / 2
    return line.size * (area / max(1, (right - left) * (bottom - top))) ** 0.5


def _corners(line: Written, warp: Warp, size: tuple[int, int]) -> Corners:
    """Where the corners of the line's ink lie in the image."""
    left, top, right, bottom = line.ink
    placed = warp(np.array([[left, top], [right, top], [right, bottom], [left, bottom]], float))
    a, b, c, d = np.clip(placed, 0, size).tolist()
    return (a[0], a[1]), (b[0], b[1]), (c[0], c[1]), (d[0], d[1])
