"""Boxes with names, from detection sets and labelling tools: a name becomes a phrase with all its boxes (Table 3)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwenvl.data.boxes import BadBox, from_coco, from_labelme, from_voc, from_yolo
from qwenvl.data.columns import IMAGES
from qwenvl.data.readers.annotations import Found, expect, listed, load_json
from qwenvl.data.records import Referring, Skipped
from qwenvl.markup import Box, Image


def _phrases(image: Path, found: Iterable[Box | BadBox], source: str) -> Found:
    """A record for every name in a picture, and why a box is in none."""
    boxes: dict[str, list[Box]] = {}
    for each in found:
        name = None if isinstance(each, BadBox) else (each.label or "").strip()
        if not name:
            kind = str(each) if isinstance(each, BadBox) else "box without a name"
            yield Skipped(key=image.name, kind=kind, source=source)
        elif isinstance(each, Box) and (bare := replace(each, label=None)) not in boxes.setdefault(name, []):
            boxes[name].append(bare)
    for name, those in boxes.items():
        yield Referring(image=Image(str(image)), phrase=name, boxes=tuple(those), source=source)


def _files(files: Sequence[Path], suffix: str) -> list[Path]:
    return [p for file in files for p in (sorted(file.glob(f"*{suffix}")) if file.is_dir() else [file])]


def _image(stem: str, images: Path) -> Path:
    """The picture of that name with whatever ending it has; .jpg where there is none."""
    there = (images / f"{stem}.{ending}" for ending in sorted(IMAGES))
    return next((path for path in there if path.exists()), images / f"{stem}.jpg")


def coco(files: Sequence[Path], images: Path) -> Found:
    """`instances_train2017.json`: images, categories and annotations; boxes of crowds are skipped."""
    for path in files:
        sheet = load_json(path)
        names = {each["id"]: each["name"] for each in listed(sheet, path, "categories")}
        things: dict[int, list[Mapping[str, Any]]] = {}
        for each in listed(sheet, path, "annotations"):
            things.setdefault(each["image_id"], []).append(each)
        for image in listed(sheet, path, "images"):
            size = (image["width"], image["height"])
            found = [_coco_box(each, names, size) for each in things.pop(image["id"], ())]
            yield from _phrases(images / image["file_name"], found, "COCO")
        for number, lost in things.items():
            yield from (Skipped(key=str(number), kind="unknown picture", source="COCO") for _ in lost)


def _coco_box(each: Mapping[str, Any], names: Mapping[int, str], size: tuple[int, int]) -> Box | BadBox:
    if each.get("iscrowd"):
        return BadBox("box of a crowd")
    try:
        return from_coco(each["bbox"], *size, names.get(each["category_id"]))
    except BadBox as bad:
        return bad


def voc(files: Sequence[Path], images: Path) -> Found:
    """Pascal VOC: `Annotations/ID.xml`, one file per picture or the folder of them."""
    for path in _files(files, ".xml"):
        try:
            found = list(from_voc(path.read_text(encoding="utf-8")))
        except ValueError as error:
            yield Skipped(key=path.stem, kind="broken annotation", detail=str(error), source="VOC")
            continue
        yield from _phrases(_image(path.stem, images), found, "VOC")


def yolo(files: Sequence[Path], images: Path) -> Found:
    """The folder of label files, one line per box, and `classes.txt`, one name per line."""
    labels, classes = expect(files, 2, "the folder labels/ and classes.txt")
    names = [line.strip() for line in classes.read_text(encoding="utf-8").splitlines()]
    for path in sorted(labels.glob("*.txt")):
        if path.name != classes.name:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found = (_yolo_box(line, names) for line in lines if line.strip())
            yield from _phrases(_image(path.stem, images), found, "YOLO")


def _yolo_box(line: str, names: Sequence[str]) -> Box | BadBox:
    try:
        return from_yolo(line, 1000, 1000, names)  # in shares, so that any size will do
    except BadBox as bad:
        return bad


def labelme(files: Sequence[Path], images: Path) -> Found:
    """LabelMe: `NAME.json`, one file per picture or the folder of them."""
    for path in _files(files, ".json"):
        sheet = load_json(path)
        name = str(sheet.get("imagePath") or f"{path.stem}.jpg").replace("\\", "/").rpartition("/")[2]
        yield from _phrases(images / name, from_labelme(sheet), "LabelMe")
