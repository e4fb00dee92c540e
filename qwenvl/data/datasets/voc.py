"""Pascal VOC, and whatever labels in its form: one XML file of boxes with names per image (Table 3)."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from qwenvl.data.boxes import from_voc
from qwenvl.data.datasets.annotations import BadEntry, files_of, load_xml, size_of
from qwenvl.data.datasets.entries import Found, one_by_one
from qwenvl.data.datasets.images import ImageFolder, frame_of
from qwenvl.data.datasets.phrases import phrases
from qwenvl.data.records import Record, Skipped


def records(files: Sequence[Path], images: Path) -> Found:
    """`Annotations/ID.xml`, one file per image or the folder of them.

    The image is the one that `<filename>` names, with whatever ending; where that is not there, the one of the XML's
    own name. A size of 0 or none at all is taken from the image.
    """
    paths = ((path.name, path) for path in files_of(files, ".xml"))
    return one_by_one(partial(_phrases, ImageFolder(images)), paths, "VOC")


def _phrases(folder: ImageFolder, path: Path) -> Iterator[Record | Skipped]:
    try:
        root = load_xml(path)
    except (OSError, ValueError) as error:
        raise BadEntry("broken annotation", str(error)) from None
    if root.tag != "annotation":
        raise BadEntry("broken annotation", f"{path} is a <{root.tag[:40]}>; VOC writes an <annotation>.")
    if root.find("object") is None:
        raise BadEntry("no box")
    file = folder.named(root.findtext("filename"), path.stem)
    frame = frame_of(file, size_in(root))
    yield from phrases(
        file, from_voc(root, (frame.width, frame.height), orientation=frame.orientation), "VOC"
    )


def size_in(root: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height that the annotation of an image gives, if any."""
    return size_of({name: root.findtext(f"size/{name}") for name in ("width", "height")})
