"""Pages of PDF files with their lines (paper A.4, PDF), by PDFium: BSD-licensed, where the paper used PyMuPDF (AGPL).

A line is what PDFium calls a text rectangle: a run of characters on one line in one style. Runs that touch on the same
line are joined. A page whose text runs at an angle that is no quarter turn is dropped: its boxes would be wrong. A PDF
is a program in disguise; whoever processes files of strangers should run this in processes that may die.
"""

import ctypes
import math
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qwenvl.data.records import Skipped
from qwenvl.data.synth.pages.page import Corners, Line, Page, file_key
from qwenvl.data.synth.pages.rules import Limits, first_reason, pdf_rules

Rectangle = tuple[float, float, float, float]

Run = tuple[str, int, Rectangle]
"""Text with a space where one stood at its ends; quarter turns clockwise of its direction; left, bottom, right, top in
points from the lower left."""

FINE = 64
"""PDFium gives whole device pixels; asked for a device this many times larger it gives fractions."""


def pypdfium2() -> Any:
    """The library; raises ValueError where it is not installed."""
    try:
        return import_module("pypdfium2")
    except ImportError:
        raise ValueError(
            "PDF pages need the package pypdfium2, which is not installed; pip install 'qwenvl[ocr]'."
        ) from None


def pdf_pages(
    source: Path | bytes,
    *,
    dpi: float = 108.0,
    longest: int = 1600,
    limits: Limits | None = None,
    name: str | None = None,
) -> Iterator[tuple[str, Page | Skipped]]:
    """Every page of a file with its key, in order, at `dpi` pixels per inch, at most `longest` along its longer side.

    A page that cannot be read, or that a rule drops, is a `Skipped` with the reason; a file with a password and a
    broken file are one `Skipped` each.
    """
    library = pypdfium2()
    rules = pdf_rules(limits or Limits())
    name = name or (source.stem if isinstance(source, Path) else "document")
    try:
        document = library.PdfDocument(source)
    except (library.PdfiumError, OSError, ValueError) as error:
        kind = "PDF with a password" if "password" in str(error).lower() else "broken PDF"
        yield name, Skipped(key=name, kind=kind, detail=str(error), source="pdf")
        return
    with document:
        for number in range(len(document)):
            key = f"{name}-{number:05d}"
            try:
                page = _page(document, number, dpi, longest)
            except (library.PdfiumError, ValueError, MemoryError) as error:
                yield key, Skipped(key=key, kind="broken PDF page", detail=str(error), source="pdf")
                continue
            reason = "text at an angle" if page is None else first_reason(page, rules)
            yield key, Skipped(key=key, kind=reason, source="pdf") if page is None or reason else page  # type: ignore[arg-type]


def pdf_files(paths: Iterable[Path], **options: Any) -> Iterator[tuple[str, Page | Skipped]]:
    """The pages of every file, in order; options as for `pdf_pages`."""
    for number, path in enumerate(paths):
        yield from pdf_pages(path, name=file_key(number, path), **options)


def _page(document: Any, number: int, dpi: float, longest: int) -> Page | None:
    """The page as a picture with lines in the order of the file; None where text runs at an odd angle."""
    page = document[number]
    try:
        width, height = page.get_size()
        if not (width > 0 and height > 0 and math.isfinite(width * height)):
            raise ValueError(f"a page of {width} x {height} points")
        scale = min(dpi / 72, longest / max(width, height))
        runs = _runs(page)
        if runs is None:
            return None
        bitmap = page.render(scale=scale, rev_byteorder=True)
        levels = bitmap.to_numpy()
        image = Image.fromarray(
            np.ascontiguousarray(levels[..., :3] if levels.ndim == 3 else levels)
        ).convert("RGB")
        lines = _lines(_joined(runs), _to_image(page, image.size), image.size)
        return Page(image=image, lines=tuple(lines), source="pdf")
    finally:
        page.close()


def _runs(page: Any) -> list[Run] | None:
    """The text rectangles of a page; None where one of them is at an angle."""
    raw = import_module("pypdfium2.raw")
    text_page = page.get_textpage()
    try:
        runs: list[Run] = []
        everything, place = text_page.get_text_range(), 0
        for k in range(text_page.count_rects()):
            box = text_page.get_rect(k)
            said = text_page.get_text_bounded(*box)
            text = _clean(said)
            if not text or box[2] - box[0] < 0.5 or box[3] - box[1] < 0.5:
                continue
            bare = said.strip()
            found = everything.find(bare, place)
            index = found + len(bare) // 2
            if found >= 0:
                place = found + len(bare)
            else:  # the text of the box is not the text of the run: look what stands in its middle
                middle, half = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                index = raw.FPDFText_GetCharIndexAtPos(
                    text_page, middle, half, box[2] - box[0], box[3] - box[1]
                )
            turns = raw.FPDFText_GetCharAngle(text_page, index) / (math.pi / 2) if index >= 0 else 0.0
            if abs(turns - round(turns)) > 0.06:  # 5 degrees
                return None
            if found >= 0 and len(bare) < len(said):
                box = _without_spaces(text_page, box, found, found + len(bare) - 1)
            left, right = said[:1].isspace(), said[-1:].isspace()
            runs.append((" " * left + text + " " * right, round(turns) % 4, box))
        return runs
    finally:
        text_page.close()


def _without_spaces(text_page: Any, box: Rectangle, first: int, last: int) -> Rectangle:
    """A rectangle cut to its first and last letter: PDFium counts the spaces around them in."""
    a, b = text_page.get_charbox(first), text_page.get_charbox(last)
    cut = (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    if cut[0] < box[0] - 1 or cut[1] < box[1] - 1 or cut[2] > box[2] + 1 or cut[3] > box[3] + 1:
        return box  # some other letters
    if box[2] - box[0] > box[3] - box[1]:
        return cut[0], box[1], cut[2], box[3]
    return box[0], cut[1], box[2], cut[3]


def _clean(text: str) -> str:
    """One line: single spaces; the sign that PDFium puts for a hyphen at a line's end is a hyphen."""
    return " ".join(text.replace("\x02", "-").replace("\xad", "-").split())


def _joined(runs: list[Run]) -> list[Run]:
    """Neighbouring runs of one upright line made one: they overlap in height and less than half an em lies between."""
    joined: list[Run] = []
    for text, turns, box in runs:
        if joined and turns == 0 == joined[-1][1]:
            before, _, last = joined[-1]
            overlap = min(box[3], last[3]) - max(box[1], last[1])
            low, high = sorted((box[3] - box[1], last[3] - last[1]))
            gap = box[0] - last[2]
            if overlap > 0.5 * low and -0.3 * high < gap < 0.5 * high and box[2] > last[2]:
                han = ord(before.rstrip()[-1]) > 0x2E7F or ord(text.lstrip()[0]) > 0x2E7F
                space = " " if gap > 0.12 * high and not han else ""
                whole = (last[0], min(last[1], box[1]), box[2], max(last[3], box[3]))
                joined[-1] = (before + space + text, 0, whole)
                continue
        joined.append((text, turns, box))
    return joined


def _to_image(page: Any, size: tuple[int, int]) -> np.ndarray:
    """The affine map (2, 3) from points of the page to pixels: crop box and rotation are PDFium's affair."""
    raw = import_module("pypdfium2.raw")
    x, y = ctypes.c_int(), ctypes.c_int()
    corners = []
    for point in ((0.0, 0.0), (1000.0, 0.0), (0.0, 1000.0)):
        raw.FPDF_PageToDevice(page, 0, 0, size[0] * FINE, size[1] * FINE, 0, *point, x, y)
        corners.append(np.array([x.value, y.value]) / FINE)
    return np.stack([(corners[1] - corners[0]) / 1000, (corners[2] - corners[0]) / 1000, corners[0]], axis=1)


def _lines(runs: list[Run], affine: np.ndarray, size: tuple[int, int]) -> Iterator[Line]:
    """Lines that lie in the picture, corners from the top left of the text as it is read."""
    if not runs:
        return
    boxes = np.array([box for _, _, box in runs])
    left, bottom, right, top = boxes.T
    corners = np.stack(
        [np.stack(p, -1) for p in ((left, top), (right, top), (right, bottom), (left, bottom))], 1
    )
    placed = corners @ affine[:, :2].T + affine[:, 2]  # (runs, 4, 2)
    for (text, turns, _), quad in zip(runs, placed, strict=True):
        inside = np.clip(quad, 0, size)
        if np.ptp(inside, axis=0).min() < 0.5 * np.ptp(quad, axis=0).min():
            continue  # half of it or more is cut off
        a, b, c, d = np.roll(inside, -turns, axis=0).tolist()
        corners_: Corners = ((a[0], a[1]), (b[0], b[1]), (c[0], c[1]), (d[0], d[1]))
        yield Line(" ".join(text.split()), corners_)
