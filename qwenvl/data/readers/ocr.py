"""Lines of text and their four corners (paper A.4, format 7): scanned receipts in the form of ICDAR 2019 SROIE."""

from collections.abc import Sequence
from pathlib import Path

from qwenvl.data.boxes import BadBox, quad_from_corners
from qwenvl.data.clean.images import BadImage, measure
from qwenvl.data.readers.annotations import Found
from qwenvl.data.records import OcrPage, Skipped
from qwenvl.markup import Image, Quad


def icdar(files: Sequence[Path], images: Path) -> Found:
    """`NNN.csv` (or .txt): x1,y1,...,x4,y4 in pixels clockwise from the top left, then the text, commas and all.

    One page per file, its picture is `NNN.jpg` in `images`; a bad line is skipped and the page keeps the others.
    """
    paths = [p for file in files for p in (sorted(file.glob("*.csv")) if file.is_dir() else [file])]
    for path in paths:
        image = images / f"{path.stem}.jpg"
        try:
            facts = measure(image.read_bytes())
        except (OSError, BadImage) as error:
            kind = str(error) if isinstance(error, BadImage) else "missing picture"
            yield Skipped(key=path.stem, kind=kind, source="SROIE")
            continue
        lines: list[Quad] = []
        for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines()):
            if not line.strip():
                continue
            try:
                lines.append(_line(line, facts.width, facts.height))
            except BadBox as error:
                yield Skipped(key=f"{path.stem}:{number}", kind=str(error), source="SROIE")
        if lines:
            yield OcrPage(image=Image(str(image)), lines=tuple(lines), source="SROIE")
        else:
            yield Skipped(key=path.stem, kind="no line of text", source="SROIE")


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
