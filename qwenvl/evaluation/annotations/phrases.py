"""Phrases to be found in a picture (paper Table 6: RefCOCO, RefCOCO+, RefCOCOg, GRIT)."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qwenvl.evaluation.annotations.sample import (
    Sample,
    Source,
    checked,
    field,
    is_lines,
    read_json,
    read_lines,
)


def refcoco(split: str) -> Callable[[Source], list[Sample]]:
    """A reader of one split: the release's JSON lines (one split per file), or REFER's `refs(...).p`.

    REFER's boxes are in `instances.json` (`Source.answers`).
    """

    def read(source: Source) -> list[Sample]:
        samples = _lines(source) if is_lines(source.data) else _refer(source, split)
        return checked(samples, source.data)

    return read


def _lines(source: Source) -> Iterator[Sample]:
    for number, record in enumerate(read_lines(source.data), start=1):
        where = f"{source.data} line {number}"
        yield Sample(
            id=str(record.get("id", number)),
            images=(source.image(field(record, "image", where)),),
            text=field(record, "sent", where),
            box=_box(field(record, "bbox", where), where),
            size=(int(field(record, "width", where)), int(field(record, "height", where))),
        )


def _refer(source: Source, split: str) -> Iterator[Sample]:
    if source.answers is None:
        raise ValueError(
            f"{source.data} holds no boxes; give instances.json of the same folder as --answers."
        )
    instances = read_json(source.answers)
    images = {image["id"]: image for image in field(instances, "images", source.answers)}
    boxes = {one["id"]: one["bbox"] for one in field(instances, "annotations", source.answers)}
    for ref in _plain_pickle(source.data):
        if field(ref, "split", source.data) != split:
            continue
        image = images[field(ref, "image_id", source.data)]
        x, y, width, height = boxes[field(ref, "ann_id", source.data)]
        for sentence in field(ref, "sentences", source.data):
            yield Sample(
                id=str(field(sentence, "sent_id", source.data)),
                images=(source.image(image["file_name"]),),
                text=field(sentence, "sent", source.data),
                box=(x, y, x + width, y + height),
                size=(image["width"], image["height"]),
            )


class _Plain(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers; anything that could run code is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"the pickle wants {module}.{name}; REFER's files hold plain lists and dicts only.")


def _plain_pickle(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _Plain(file, encoding="utf-8").load()
    except (pickle.UnpicklingError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is no pickle of REFER ({error}); expected refs(unc).p or refs(umd).p."
        ) from None


def grit(source: Source) -> list[Sample]:
    """GRIT refexp: a list (or JSON lines) of example_id, image and phrase, with a bbox where it is public."""
    records = read_lines(source.data) if is_lines(source.data) else read_json(source.data)
    return checked(
        (
            Sample(
                id=str(field(record, "example_id", source.data)),
                images=(source.image(field(record, "image", source.data)),),
                text=field(record, "phrase", source.data),
                box=_box(record["bbox"], source.data) if "bbox" in record else None,
                size=(int(record["width"]), int(record["height"])) if "width" in record else None,
            )
            for record in records
        ),
        source.data,
    )


def _box(corners: list[float], where: object) -> tuple[float, float, float, float]:
    if len(corners) != 4:
        raise ValueError(
            f"{where} has a bbox of {len(corners)} numbers; expected left, top, right, bottom in pixels."
        )
    x1, y1, x2, y2 = map(float, corners)
    return x1, y1, x2, y2
