"""Visual Genome (paper Table 3): questions (VGQA), and regions with phrases; image_data.json knows the images."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from qwenvl.data.boxes import from_coco
from qwenvl.data.datasets.annotations import (
    BadEntry,
    expect,
    field,
    identity,
    listed,
    load_json,
    size_of,
    texts,
    words,
)
from qwenvl.data.datasets.entries import Found, numbered, one_by_one, question
from qwenvl.data.datasets.images import ImageFolder, frame_of
from qwenvl.data.datasets.sample import Sample
from qwenvl.data.records import Record, Referring
from qwenvl.markup import Image


class _Known(NamedTuple):
    """What image_data.json says of an image."""

    name: str
    """`VG_100K_2/1.jpg`, the end of its URL."""
    size: tuple[int, int] | None


def _known(image_data: Path) -> Mapping[str, _Known]:
    known = {}
    for each in listed(load_json(image_data), image_data):
        try:
            number = identity(each.get("image_id", each.get("id")), "image id")
            known[number] = _Known("/".join(words(each, "url", image_data).split("/")[-2:]), size_of(each))
        except (BadEntry, AttributeError):
            continue  # whoever asks for this image finds it unknown, and is counted
    return known


def _image_id(*entries: Any) -> str:
    """The id of the image that an entry, or what holds it, is about."""
    found = (each.get(name) for each in entries if isinstance(each, Mapping) for name in ("image_id", "id"))
    return identity(next((value for value in found if value is not None), None), "image id")


def _entries(path: Path, name: str, key: str) -> Iterator[tuple[object, tuple[Any, Any]]]:
    """Every question or region with the image that holds it."""
    for number, image in enumerate(listed(load_json(path), path)):
        inner = image.get(name) if isinstance(image, Mapping) else None
        if not isinstance(inner, list):
            yield f"{path.stem}-{number}", (None, image)
            continue
        for own, each in numbered(path, inner, key):
            yield own, (each, image)


def questions(files: Sequence[Path], images: Path) -> Found:
    """`question_answers.json`, and `image_data.json` for the folder that each image is in."""
    path, image_data = expect(files, 2, "question_answers.json and image_data.json")
    known, folder = _known(image_data), ImageFolder(images)

    def read(entry: tuple[Any, Any]) -> Iterator[Record]:
        each, image = entry
        number = _image_id({"image_id": each.get("image_id")}, {"image_id": image.get("id")}, image)
        name = known[number].name if number in known else f"VG_100K/{number}.jpg"
        sample = Sample(
            id=str(field(each, "qa_id", path)),
            images=(str(folder.find(name)),),
            text=words(each, "question", path),
            answers=texts(field(each, "answer", path)),
        )
        yield question(sample, sample.answers[0] if sample.answers else None, "VGQA")

    return one_by_one(read, _entries(path, "qas", "qa_id"), "VGQA")


def regions(files: Sequence[Path], images: Path) -> Found:
    """`region_descriptions.json` and `image_data.json`: a phrase and its box in pixels."""
    path, image_data = expect(files, 2, "region_descriptions.json and image_data.json")
    read = partial(_region, _known(image_data), ImageFolder(images), path)
    return one_by_one(read, _entries(path, "regions", "region_id"), "Visual Genome")


def _region(
    known: Mapping[str, _Known], folder: ImageFolder, path: Path, entry: tuple[Any, Any]
) -> Iterator[Record]:
    each, image = entry
    phrase = words(each, "phrase", path)
    number = _image_id({"image_id": each.get("image_id")}, {"image_id": image.get("id")}, image)
    if number not in known or not phrase:
        raise BadEntry("unknown image" if phrase else "no phrase")
    bbox = [field(each, name, path) for name in ("x", "y", "width", "height")]
    file = folder.find(known[number].name)
    frame = frame_of(file, known[number].size)
    box = from_coco(bbox, frame.width, frame.height, orientation=frame.orientation)
    yield Referring(image=Image(str(file)), phrase=phrase, boxes=(box,), source="Visual Genome")
