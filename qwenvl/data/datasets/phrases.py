"""Boxes with names, from detection sets and labelling tools: a name becomes a phrase with all its boxes (Table 3)."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from qwenvl.data.boxes import BadBox
from qwenvl.data.datasets.entries import Found
from qwenvl.data.records import Referring, Skipped
from qwenvl.markup import Box, Image


def phrases(image: Path, found: Iterable[Box | BadBox], source: str) -> Found:
    """A record for every name in an image, and why a box is in none; an image without any box is counted too."""
    boxes: dict[str, list[Box]] = {}
    number = -1
    for number, each in enumerate(found):
        name = None if isinstance(each, BadBox) else (each.label or "").strip()
        if not name:
            kind = str(each) if isinstance(each, BadBox) else "box without a name"
            yield Skipped(key=f"{image.name}:{number}", kind=kind, source=source)
        elif isinstance(each, Box) and (bare := replace(each, label=None)) not in boxes.setdefault(name, []):
            boxes[name].append(bare)
    for name, those in boxes.items():
        yield Referring(image=Image(str(image)), phrase=name, boxes=tuple(those), source=source)
    if number < 0:
        yield Skipped(key=image.name, kind="no box", source=source)
