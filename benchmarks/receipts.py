"""Scanned receipts of ICDAR 2019 SROIE through the OCR reader into the training format and back.

    $ python benchmarks/receipts.py FOLDER        NNN.jpg and NNN.csv side by side

Every page becomes a record, the record the text that is trained on (format 7 of Box B.1), that text a record again, and
its quads pixels again. Prints what was read, and how far corners moved. Exit status 1 if a record does not come back
as it was, or a corner moves by more than half a cell of the grid (a whole one at the right and lower edge).
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from qwenvl.data.clean.images import measure
from qwenvl.data.datasets import icdar
from qwenvl.data.records import OcrPage, Skipped
from qwenvl.data.tasks import record_of, task_of
from qwenvl.markup import spell


def corners(csv: Path) -> list[list[float]]:
    """The eight numbers of every line of a file."""
    rows = [row.split(",", 8) for row in csv.read_text("utf-8-sig", errors="replace").splitlines()]
    return [[float(cell) for cell in row[:8]] for row in rows if len(row) == 9]


def moved(page: OcrPage) -> float:
    """The farthest that a corner is from where the file says, in cells of the grid."""
    image = Path(str(page.image.source))
    facts = measure(image.read_bytes())
    farthest = 0.0
    for line, true in zip(page.lines, corners(image.with_suffix(".csv")), strict=True):
        found = [value for point in line.to_pixels(facts.width, facts.height) for value in point]
        for place, (here, there) in enumerate(zip(found, true, strict=True)):
            cell = (facts.height if place % 2 else facts.width) / 1000
            edge = 2 if there > 999 * cell else 1  # the last cell stands for the border too
            farthest = max(farthest, abs(here - there) / cell / edge)
    return farthest


def main(folder: Path) -> int:
    """Prints the counts and the farthest corner."""
    counts: Counter[str] = Counter()
    farthest = 0.0
    for found in icdar.records([folder], folder):
        if isinstance(found, Skipped):
            counts[f"skipped: {found.kind}"] += 1
            continue
        assert isinstance(found, OcrPage)
        message = task_of(found)
        again = record_of(
            "ocr", spell(message.prompt[1:]), spell(message.answer), found.image, source=found.source
        )
        counts.update({"pages": 1, "lines": len(found.lines), "pages that come back": again == found})
        farthest = max(farthest, moved(found))
    for name, count in counts.items():
        print(f"{count:>8,}  {name}")
    print(f"{farthest:>8.2f}  cells of the grid at most between a corner and the file's")
    return 0 if counts["pages"] == counts["pages that come back"] > 0 and farthest <= 0.51 else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    sys.exit(main(parser.parse_args().folder))
