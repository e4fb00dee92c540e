"""RefCOCO, RefCOCO+ and RefCOCOg (paper Tables 3 and 6): sentences about an object, by REFER's pickle and its boxes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qwenvl.data.boxes import from_coco
from qwenvl.data.datasets.annotations import (
    BadEntry,
    expect,
    field,
    identity,
    is_lines,
    listed,
    load_json,
    load_lines,
    load_pickle,
    mended,
    size_of,
    words,
)
from qwenvl.data.datasets.entries import Found, numbered, one_by_one
from qwenvl.data.datasets.images import frame_of
from qwenvl.data.datasets.sample import Sample, Source, checked, corners_of
from qwenvl.data.records import Record, Referring
from qwenvl.markup import Image


@dataclass(frozen=True)
class _Instances:
    """What `instances.json` holds: images and boxes by their ids."""

    path: Path
    images: Mapping[str, Mapping[str, Any]]
    boxes: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "_Instances":
        sheet = load_json(path)
        images = _by_id(listed(sheet, path, "images"))
        boxes = {name: each.get("bbox") for name, each in _by_id(listed(sheet, path, "annotations")).items()}
        return cls(path, images, boxes)

    def of(self, ref: Any, where: Path) -> tuple[Mapping[str, Any], Any]:
        """The image that a reference is about, and its box: left, top, width, height. Raises BadEntry."""
        image = self.images.get(identity(field(ref, "image_id", where), "image id"))
        box = self.boxes.get(identity(field(ref, "ann_id", where), "annotation id"))
        if image is None or box is None:
            raise BadEntry(
                "unknown image", f"{self.path} has no image or no box of the reference {str(ref)[:80]!r}."
            )
        return image, box


def _by_id(entries: Sequence[Any]) -> dict[str, Mapping[str, Any]]:
    found = {}
    for each in entries:
        if isinstance(each, Mapping) and isinstance(each.get("id"), int | float | str):
            found[str(each["id"])] = each  # whoever asks for another one finds it unknown
    return found


def _refs(path: Path) -> Sequence[Any]:
    return listed(load_pickle(path), path)


def _sentences(ref: Any, where: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    for sentence in field(ref, "sentences", where):
        yield sentence, mended(words(sentence, "sent", where))


# === Training ===


def records(files: Sequence[Path], images: Path, name: str = "RefCOCO", split: str = "train") -> Found:
    """`refs(unc).p` (or google, umd) and `instances.json`: every sentence of the split with the box of its object."""
    refs, instances = expect(files, 2, "refs(...).p and instances.json")
    known = _Instances.read(instances)
    source = Source(refs, instances, images)
    wanted = (ref for ref in _refs(refs) if not isinstance(ref, Mapping) or ref.get("split", split) == split)
    return one_by_one(partial(_phrases, source, known, name), numbered(refs, wanted, "ref_id"), name)


def _phrases(source: Source, known: _Instances, name: str, ref: Any) -> Iterator[Record]:
    image, bbox = known.of(ref, source.data)
    file = source.image(mended(words(image, "file_name", known.path)))
    frame = frame_of(Path(file), size_of(image))
    box = from_coco(bbox, frame.width, frame.height, orientation=frame.orientation)
    for _, phrase in _sentences(ref, source.data):
        if not phrase:
            raise BadEntry("no phrase")
        yield Referring(image=Image(file), phrase=phrase, boxes=(box,), source=name)


def records_plus(files: Sequence[Path], images: Path) -> Found:
    """RefCOCO+: the same two files."""
    return records(files, images, "RefCOCO+")


def records_g(files: Sequence[Path], images: Path) -> Found:
    """RefCOCOg: `refs(umd).p` or `refs(google).p`, and `instances.json`."""
    return records(files, images, "RefCOCOg")


# === Evaluation ===


def samples(split: str) -> Callable[[Source], list[Sample]]:
    """A reader of one split: the release's JSON lines (one split per file), or REFER's `refs(...).p`.

    REFER's boxes are in `instances.json` (`Source.answers`).
    """

    def read(source: Source) -> list[Sample]:
        found = _lines(source) if is_lines(source.data) else _refer(source, split)
        return checked(found, source.data)

    return read


def _lines(source: Source) -> Iterator[Sample]:
    for number, record in enumerate(load_lines(source.data), start=1):
        where = f"{source.data} line {number}"
        yield Sample(
            id=str(record.get("id", number)),
            images=(source.image(field(record, "image", where)),),
            text=words(record, "sent", where),
            box=corners_of(field(record, "bbox", where), where),
            size=_size(record, where),
        )


def _refer(source: Source, split: str) -> Iterator[Sample]:
    if source.answers is None:
        raise ValueError(
            f"{source.data} holds no boxes; give instances.json of the same folder as --answers."
        )
    known = _Instances.read(source.answers)
    for ref in _refs(source.data):
        if field(ref, "split", source.data) != split:
            continue
        image, bbox = known.of(ref, source.data)
        x, y, width, height = corners_of(bbox, source.answers)
        for sentence, phrase in _sentences(ref, source.data):
            yield Sample(
                id=str(field(sentence, "sent_id", source.data)),
                images=(source.image(mended(words(image, "file_name", known.path))),),
                text=phrase,
                box=(x, y, x + width, y + height),
                size=_size(image, known.path),
            )


def _size(record: Any, where: object) -> tuple[int, int]:
    for name in ("width", "height"):
        field(record, name, where)
    size = size_of(record)
    if size is None:
        raise BadEntry("no size", f"{where} has an image without a width and a height in pixels.")
    return size
