"""Scanned receipts in the form of ICDAR 2019 SROIE (paper A.4, format 7): lines of text and their four corners."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from qwenvl.data.boxes import BadBox, quad_from_corners
from qwenvl.data.datasets.annotations import BadEntry, files_of, text_lines
from qwenvl.data.datasets.entries import Found, one_by_one
from qwenvl.data.datasets.images import ImageFolder, frame_of
from qwenvl.data.records import OcrPage, Record, Skipped
from qwenvl.markup import Image, Quad


def records(files: Sequence[Path], images: Path) -> Found:
    """`NNN.csv` (or .txt): x1,y1,...,x4,y4 in pixels clockwise from the top left, then the text, commas and all.

    One page per file, its image has the same name in `images`; a bad line is skipped and the page keeps the others.
    """
    paths = ((path.stem, path) for path in files_of(files, ".csv"))
    return one_by_one(partial(_page, ImageFolder(images)), paths, "SROIE")


def _page(folder: ImageFolder, path: Path) -> Iterator[Record | Skipped]:
    file = folder.by_stem(path.stem)
    frame = frame_of(file, None)
    lines: list[Quad] = []
    for number, line in enumerate(text_lines(path)):
        if not line.strip():
            continue
        try:
            lines.append(_line(line, frame.width, frame.height))
        except BadBox as error:
            yield Skipped(key=f"{path.stem}:{number}", kind=str(error), source="SROIE")
    if not lines:
        raise BadEntry("no line of text")
    yield OcrPage(image=Image(str(file)), lines=tuple(lines), source="SROIE")


def _line(line: str, width: int, height: int) -> Quad:
    cells = line.split(",", 8)
    if len(cells) < 9 or not cells[8].strip():
        raise BadBox("line without eight numbers and a text")
    try:
        numbers = [float(cell) for cell in cells[:8]]
    except ValueError:
        raise BadBox("line without eight numbers and a text") from None
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    return quad_from_corners(points, width, height, cells[8].strip())
