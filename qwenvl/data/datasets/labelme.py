"""LabelMe: a JSON file of shapes with labels per image (Table 3)."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from qwenvl.data.boxes import from_labelme
from qwenvl.data.datasets.annotations import BadEntry, field, files_of, load_json, size_of
from qwenvl.data.datasets.entries import Found, one_by_one
from qwenvl.data.datasets.images import ImageFolder, frame_of
from qwenvl.data.datasets.phrases import phrases
from qwenvl.data.records import Record, Skipped


def records(files: Sequence[Path], images: Path) -> Found:
    """`NAME.json`, one file per image or the folder of them.

    The image is the one that the last part of imagePath names, else the one that is called as the file is.
    """
    paths = ((path.name, path) for path in files_of(files, ".json"))
    return one_by_one(partial(_phrases, ImageFolder(images)), paths, "LabelMe")


def _phrases(folder: ImageFolder, path: Path) -> Iterator[Record | Skipped]:
    try:
        sheet = load_json(path)
    except ValueError as error:
        raise BadEntry("broken annotation", str(error)) from None
    shapes = field(sheet, "shapes", path)
    if not isinstance(shapes, list):
        raise BadEntry(
            "broken annotation", f"{path} has {str(shapes)[:60]!r} as its shapes; expected a list."
        )
    if not shapes:
        raise BadEntry("no box")
    file = folder.named(sheet.get("imagePath"), path.stem)
    frame = frame_of(file, size_of(sheet, "imageWidth", "imageHeight"))
    found = from_labelme(sheet, (frame.width, frame.height), orientation=frame.orientation)
    yield from phrases(file, found, "LabelMe")
