"""COCO (paper Tables 3 and 4): images, and captions or boxes that refer to them by id; NoCaps comes in its form too."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl.data.boxes import BadBox, from_coco
from qwenvl.data.datasets.annotations import (
    BadEntry,
    field,
    identity,
    listed,
    load_json,
    size_of,
    words,
)
from qwenvl.data.datasets.entries import Found, image, numbered, one_by_one
from qwenvl.data.datasets.images import frame_of
from qwenvl.data.datasets.phrases import phrases
from qwenvl.data.datasets.sample import Sample, Source, checked
from qwenvl.data.records import Caption, Record, Skipped
from qwenvl.markup import Box


def _images(sheet: Any, path: Path, source: str) -> tuple[dict[str, Mapping[str, Any]], list[Skipped]]:
    """The images of a file by their ids, and what is listed there and is none."""
    known: dict[str, Mapping[str, Any]] = {}
    bad: list[Skipped] = []
    for key, each in numbered(path, listed(sheet, path, "images"), "id"):
        try:
            number = identity(field(each, "id", path), "image id")
            if number in known:
                raise BadEntry("image id twice", f"{path} lists two images {number}.")
        except BadEntry as error:
            bad.append(Skipped(key=key, kind=error.kind, detail=str(error), source=source))
        else:
            known[number] = each
    return known, bad


def _name(listed_image: Mapping[str, Any], path: Path) -> str:
    return words(listed_image, "image" if "image" in listed_image else "file_name", path)


# === Captions ===


def records(files: Sequence[Path], images: Path) -> Found:
    """`captions_train2017.json`: images and annotations; every caption is a record."""
    for path in files:
        sheet, source = load_json(path), Source(path, images=images)
        known, bad = _images(sheet, path, "COCO Caption")
        yield from bad
        entries = numbered(path, listed(sheet, path, "annotations"), "id")
        yield from one_by_one(partial(_caption, source, known), entries, "COCO Caption")


def _caption(source: Source, known: Mapping[str, Mapping[str, Any]], entry: Any) -> Iterator[Record]:
    text = words(entry, "caption", source.data)
    number = identity(field(entry, "image_id", source.data), "image id")
    if number not in known or not text:
        raise BadEntry("unknown image" if text else "empty caption")
    yield Caption(
        image=image(source.image(_name(known[number], source.data))), text=text, source="COCO Caption"
    )


def samples(source: Source) -> list[Sample]:
    """COCO's format with the reference captions of every image: NoCaps, and the release's files."""
    sheet = load_json(source.data)
    known, bad = _images(sheet, source.data, "")
    if bad:
        raise BadEntry(bad[0].kind, bad[0].detail)
    said: dict[str, list[str]] = {}
    for entry in listed(sheet, source.data, "annotations") if "annotations" in sheet else ():
        number = identity(field(entry, "image_id", source.data), "image id")
        said.setdefault(number, []).append(words(entry, "caption", source.data))
    if unknown := set(said) - set(known):
        raise ValueError(
            f"{source.data} has captions of {len(unknown)} images it does not list: {min(unknown)}."
        )
    return checked((_sample(source, number, each, said) for number, each in known.items()), source.data)


def _sample(source: Source, number: str, each: Mapping[str, Any], said: Mapping[str, list[str]]) -> Sample:
    return Sample(
        id=number,
        images=(source.image(_name(each, source.data)),),
        answers=tuple(said.get(number, ())),
        group=str(each.get("domain", "")),
    )


# === Boxes ===


def boxes(files: Sequence[Path], images: Path) -> Found:
    """`instances_train2017.json`: images, categories and annotations; boxes of crowds are skipped."""
    for path in files:
        sheet, source = load_json(path), Source(path, images=images)
        names = _categories(sheet, path)
        known, bad = _images(sheet, path, "COCO")
        things: dict[str, list[Any]] = {}
        for key, each in numbered(path, listed(sheet, path, "annotations"), "id"):
            try:
                things.setdefault(identity(field(each, "image_id", path), "image id"), []).append(each)
            except BadEntry as error:
                bad.append(Skipped(key=key, kind=error.kind, detail=str(error), source="COCO"))
        yield from bad
        read = partial(_phrases, source, names)
        entries = ((number, (each, things.pop(number, []))) for number, each in known.items())
        yield from one_by_one(read, entries, "COCO")
        for number, lost in things.items():
            yield from (Skipped(key=number, kind="unknown image", source="COCO") for _ in lost)


def _categories(sheet: Any, path: Path) -> Mapping[str, str]:
    """Names by ids; a category that is damaged leaves its boxes without a name, which are counted."""
    names = {}
    for each in listed(sheet, path, "categories"):
        try:
            names[identity(field(each, "id", path))] = words(each, "name", path)
        except BadEntry:
            continue
    return names


def _phrases(
    source: Source, names: Mapping[str, str], entry: tuple[Mapping[str, Any], list[Any]]
) -> Iterator[Record | Skipped]:
    listed_image, things = entry
    if not things:
        raise BadEntry("no box")
    file = Path(source.image(_name(listed_image, source.data)))
    frame = frame_of(file, size_of(listed_image))
    yield from phrases(file, (_box(each, names, frame) for each in things), "COCO")


def _box(each: Any, names: Mapping[str, str], frame: tuple[int, int, int]) -> Box | BadBox:
    width, height, orientation = frame
    if each.get("iscrowd"):
        return BadBox("box of a crowd")
    try:
        label = names.get(identity(each.get("category_id"), "category"))
        return from_coco(each.get("bbox") or (), width, height, label, orientation=orientation)
    except BadEntry:
        return BadBox("box without a name")
    except BadBox as bad:
        return bad
