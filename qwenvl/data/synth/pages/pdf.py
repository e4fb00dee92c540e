"""Pages of PDF files with their lines (paper A.4, PDF), by PDFium: BSD-licensed, where the paper used PyMuPDF (AGPL).

A line is what PDFium calls a text rectangle: a run of characters on one line in one style. Runs that touch on the same
line are joined. A page whose text runs at an angle that is no quarter turn is dropped: its boxes would be wrong. What
nobody sees is no line: where something else than text lies in the box of a line, the page is drawn a second time
without its text, and a line in whose box nothing has changed is left out, but for the hidden text that a scanner lays
over its image (render mode 3), where the image has ink there.

A PDF is a program in disguise: `pdf_files` reads those of strangers in a process that may die.
"""

import ctypes
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from qwenvl.data.records import Skipped
from qwenvl.data.synth.pages.ink import seen_lines
from qwenvl.data.synth.pages.page import Corners, Line, Page
from qwenvl.data.synth.pages.rules import Limits, first_reason, pdf_rules

Rectangle = tuple[float, float, float, float]


class Run(NamedTuple):
    """A piece of a line, in one style."""

    text: str
    """With a space where one stood at its ends."""
    turns: int
    """Quarter turns clockwise of its direction."""
    box: Rectangle
    """Left, bottom, right, top in points from the lower left."""
    hidden: bool = False
    """Drawn without ink (render mode 3), as a scanner hides what it has read."""
    before: str | None = None
    """What PDFium puts between the run before and this one; None where it cannot be told."""


class Pieces(NamedTuple):
    """What a page is made of."""

    texts: list[Any]
    """Text objects, those in its forms too."""
    others: list[Any]
    """Objects of the page itself that are, or hold, something else."""


MANY = 1000
"""Objects beside the text that are not asked one by one where they lie: it would take longer than drawing them."""

HOPELESS = 50
"""Broken pages in turn after which the rest of a file is not tried: it may say that it has two thousand million."""

DEEPEST = 16
"""Forms within forms that are looked into."""

RIM = 2.0
"""Pixels around an object into which the blurred edge of its strokes may reach."""

CELL = 4.0
"""Points: two texts that begin farther apart than this are never one text drawn twice."""

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
    first: int = 0,
    opened: Callable[[int], object] = int,
) -> Iterator[tuple[str, Page | Skipped]]:
    """Every page of a file with its key, in order, at `dpi` pixels per inch, at most `longest` along its longer side.

    Begins with page number `first`; `opened` hears how many pages there are. A page that cannot be read, or that a rule
    drops, is a `Skipped` with the reason; a file with a password and a broken file are one `Skipped` each. After
    `HOPELESS` broken pages in turn the rest of a file is not tried.
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
        opened(len(document))
        broken = 0
        for number in range(first, len(document)):
            key = page_key(name, number)
            try:
                page = _page(document, number, dpi, longest)
            except (library.PdfiumError, ValueError, MemoryError) as error:
                broken += 1
                yield key, Skipped(key=key, kind="broken PDF page", detail=str(error), source="pdf")
                if broken == HOPELESS:
                    return
                continue
            broken = 0
            reason = "text at an angle" if page is None else first_reason(page, rules)
            yield key, Skipped(key=key, kind=reason, source="pdf") if page is None or reason else page  # type: ignore[arg-type]


def page_key(name: str, number: int) -> str:
    """The key of a page of a file."""
    return f"{name}-{number:05d}"


def _page(document: Any, number: int, dpi: float, longest: int) -> Page | None:
    """The page as an image with lines in the order of the file; None where text runs at an odd angle."""
    page = document[number]
    try:
        width, height = page.get_size()
        if not (width > 0 and height > 0 and math.isfinite(width * height)):
            raise ValueError(f"a page of {width} x {height} points")
        scale = min(dpi / 72, longest / max(width, height))
        pieces = _pieces_of(page)
        image = _drawn(page, scale)
        _without_doubles(page, pieces.texts)
        runs = _runs(page)
        if runs is None:
            return None
        affine = _to_image(page, image.size)
        found = list(_lines(_joined(runs), affine, image.size))
        lines, hidden = [line for line, _ in found], [is_hidden for _, is_hidden in found]
        blank = None
        if not _all_on_white(lines, _places_of_others(page, pieces.others), affine):
            for piece in pieces.texts:
                _raw().FPDFPageObj_SetIsActive(piece, False)
            blank = _drawn(page, scale)
        seen = seen_lines(lines, image, blank, hidden)
        return Page(image=image, lines=seen, source="pdf", unseen=len(lines) - len(seen))
    finally:
        page.close()


def _drawn(page: Any, scale: float) -> Image.Image:
    levels = page.render(scale=scale, rev_byteorder=True).to_numpy()
    image = Image.fromarray(np.ascontiguousarray(levels[..., :3] if levels.ndim == 3 else levels))
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=1)
def _raw() -> Any:
    return import_module("pypdfium2.raw")


def _pieces_of(holder: Any, within: int = 0) -> Pieces:
    """The objects of a page, or of a form within it."""
    raw = _raw()
    count, get = raw.FPDFPage_CountObjects, raw.FPDFPage_GetObject
    if within:
        count, get = raw.FPDFFormObj_CountObjects, raw.FPDFFormObj_GetObject
    found = Pieces([], [])
    for k in range(count(holder)):
        piece = get(holder, k)
        kind = raw.FPDFPageObj_GetType(piece)
        if kind == raw.FPDF_PAGEOBJ_TEXT:
            found.texts.append(piece)
            continue
        inner = _pieces_of(piece, within + 1) if kind == raw.FPDF_PAGEOBJ_FORM and within < DEEPEST else None
        if inner is not None:
            found.texts.extend(inner.texts)
        if inner is None or inner.others:
            found.others.append(piece)
    return found


def _places_of_others(page: Any, others: list[Any]) -> list[Rectangle] | None:
    """The rectangles in which a page shows something else than text, notes on it too; None where they are not told."""
    raw = _raw()
    notes = raw.FPDFPage_GetAnnotCount(page)
    if len(others) + notes > MANY:
        return None
    places: list[Rectangle] = []
    sides = [ctypes.c_float() for _ in range(4)]
    for piece in others:
        if not raw.FPDFPageObj_GetBounds(piece, *sides):
            return None
        places.append((sides[0].value, sides[1].value, sides[2].value, sides[3].value))
    around = raw.FS_RECTF()
    for number in range(notes):
        note = raw.FPDFPage_GetAnnot(page, number)
        known = raw.FPDFAnnot_GetRect(note, around)
        raw.FPDFPage_CloseAnnot(note)
        if not known:
            return None
        places.append((around.left, around.bottom, around.right, around.top))
    return places


def _all_on_white(lines: list[Line], places: list[Rectangle] | None, affine: np.ndarray) -> bool:
    """Whether the boxes of all lines, and a rim around them, are free of everything else: paper is white."""
    if places is None or not np.isfinite(places).all():
        return False
    if not places or not lines:
        return True
    left, bottom, right, top = np.array(places).T
    corners = np.stack(
        [np.stack(p, -1) for p in ((left, top), (right, top), (right, bottom), (left, bottom))]
    )
    placed = corners @ affine[:, :2].T + affine[:, 2]  # (4, places, 2)
    quads = np.array([line.quad for line in lines])  # (lines, 4, 2)
    first, last = placed.min(0) - RIM, placed.max(0) + RIM
    meets = (quads.min(1)[:, None] < last) & (quads.max(1)[:, None] > first)
    return not meets.all(-1).any()


def _without_doubles(page: Any, pieces: list[Any]) -> None:
    """Switch off the second of two equal texts a hair's breadth apart: letters drawn twice, to look bold."""
    raw = _raw()
    sides = [ctypes.c_float() for _ in range(4)]
    cells: dict[tuple[int, int], list[tuple[Any, Rectangle]]] = {}
    doubles: list[tuple[Any, Any]] = []
    for piece in pieces:
        if not raw.FPDFPageObj_GetBounds(piece, *sides):
            continue
        left, bottom, right, top = (side.value for side in sides)
        if not math.isfinite(left + bottom + right + top):
            continue
        reach = 0.25 * (top - bottom)
        x, y = int(left // CELL), int(bottom // CELL)
        near = (each for i in (-1, 0, 1) for j in (-1, 0, 1) for each in cells.get((x + i, y + j), ()))
        for other, (a, b, c, d) in near:
            if max(abs(left - a), abs(bottom - b), abs(right - c), abs(top - d)) < min(reach, CELL):
                doubles.append((other, piece))
                break
        else:
            cells.setdefault((x, y), []).append((piece, (left, bottom, right, top)))
    if not doubles:
        return
    text_page = page.get_textpage()
    try:
        said = [(_said(other, text_page), _said(piece, text_page)) for other, piece in doubles]
    finally:
        text_page.close()
    for (_, piece), (first, second) in zip(doubles, said, strict=True):
        if second in (first, ""):  # PDFium leaves some of them out by itself, and is led astray by the others
            raw.FPDFPageObj_SetIsActive(piece, False)


def _said(piece: Any, text_page: Any) -> str:
    """The text of a text object."""
    raw = _raw()
    size = raw.FPDFTextObj_GetText(piece, text_page, None, 0)
    letters = (ctypes.c_ushort * (size // 2 + 1))()
    raw.FPDFTextObj_GetText(piece, text_page, letters, size)
    return bytes(letters).decode("utf-16-le", "replace").rstrip("\0")


def _runs(page: Any) -> list[Run] | None:
    """The text rectangles of a page; None where one of them is at an angle."""
    raw = _raw()
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
            before = None
            if found >= 0:
                before = everything[place:found] if runs else ""
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
            text = " " * said[:1].isspace() + text + " " * said[-1:].isspace()
            hidden = index >= 0 and _is_hidden(text_page, index)
            runs.append(Run(text, round(turns) % 4, box, hidden, before))
        return runs
    finally:
        text_page.close()


def _is_hidden(text_page: Any, index: int) -> bool:
    """Whether a letter is drawn in the mode that leaves no ink."""
    raw = _raw()
    piece = raw.FPDFText_GetTextObject(text_page, index)
    return bool(piece) and raw.FPDFTextObj_GetTextRenderMode(piece) == raw.FPDF_TEXTRENDERMODE_INVISIBLE


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
    for run in runs:
        last, box = joined[-1] if joined else None, run.box
        if last and run.turns == 0 == last.turns and run.hidden == last.hidden:
            overlap = min(box[3], last.box[3]) - max(box[1], last.box[1])
            low, high = sorted((box[3] - box[1], last.box[3] - last.box[1]))
            gap = box[0] - last.box[2]
            half_an_em = (
                0.7 if run.before == " " else 0.5
            ) * high  # the box of letters without their bearings
            if overlap > 0.5 * low and -0.3 * high < gap < half_an_em and box[2] > last.box[2]:
                whole = (last.box[0], min(last.box[1], box[1]), box[2], max(last.box[3], box[3]))
                text = last.text + _between(last, run, gap, high) + run.text
                joined[-1] = Run(text, 0, whole, run.hidden, last.before)
                continue
        joined.append(run)
    return joined


def _between(last: Run, run: Run, gap: float, height: float) -> str:
    """A space, or nothing: as PDFium has it where it has them on one line, else by the gap."""
    if run.before is not None and not {"\r", "\n"} & set(run.before):
        return " " if run.before else ""
    han = ord(last.text.rstrip()[-1]) > 0x2E7F or ord(run.text.lstrip()[0]) > 0x2E7F
    return " " if gap > 0.12 * height and not han else ""


def _to_image(page: Any, size: tuple[int, int]) -> np.ndarray:
    """The affine map (2, 3) from points of the page to pixels: crop box and rotation are PDFium's affair."""
    raw = _raw()
    x, y = ctypes.c_int(), ctypes.c_int()
    corners = []
    for point in ((0.0, 0.0), (1000.0, 0.0), (0.0, 1000.0)):
        raw.FPDF_PageToDevice(page, 0, 0, size[0] * FINE, size[1] * FINE, 0, *point, x, y)
        corners.append(np.array([x.value, y.value]) / FINE)
    return np.stack([(corners[1] - corners[0]) / 1000, (corners[2] - corners[0]) / 1000, corners[0]], axis=1)


def _lines(runs: list[Run], affine: np.ndarray, size: tuple[int, int]) -> Iterator[tuple[Line, bool]]:
    """Lines that lie in the image, corners from the top left of the text as it is read; and whether it is hidden."""
    if not runs:
        return
    boxes = np.array([run.box for run in runs])
    left, bottom, right, top = boxes.T
    corners = np.stack(
        [np.stack(p, -1) for p in ((left, top), (right, top), (right, bottom), (left, bottom))], 1
    )
    placed = corners @ affine[:, :2].T + affine[:, 2]  # (runs, 4, 2)
    inside = np.clip(placed, 0, size)
    cut = np.ptp(inside, axis=1).min(-1) < 0.5 * np.ptp(placed, axis=1).min(-1)
    for run, quad, is_cut in zip(runs, inside.tolist(), cut.tolist(), strict=True):
        if is_cut:
            continue  # half of it or more
        a, b, c, d = quad[run.turns :] + quad[: run.turns]
        corners_: Corners = ((a[0], a[1]), (b[0], b[1]), (c[0], c[1]), (d[0], d[1]))
        yield Line(" ".join(run.text.split()), corners_), run.hidden
