"""Boxes with names in the files of COCO, VOC, YOLO and LabelMe: one phrase per name, every bad box counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as pillow

from qwenvl.data.datasets.table import read
from qwenvl.data.records import Referring, Skipped
from qwenvl.markup import spell


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are in `pics`, below the folder of the test."""
    monkeypatch.chdir(tmp_path)
    Path("pics").mkdir()


def paint(name: str, width: int, height: int, **options: Any) -> Path:
    path = Path("pics", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    pillow.new("RGB", (width, height)).save(path, **options)
    return path


def found(name: str, *files: Path, images: Path = Path("pics")) -> list[tuple[str, ...]]:
    return [
        ("skipped", each.kind)
        if isinstance(each, Skipped)
        else (str(each.image.source), each.phrase, spell(each.boxes))
        for each in read(name, files, images)
        if isinstance(each, Skipped | Referring)
    ]


def test_coco(tmp_path: Path) -> None:
    def thing(box: list[float], category: int = 18, image: int = 9, crowd: int = 0) -> dict[str, Any]:
        return {"id": 1, "image_id": image, "category_id": category, "bbox": box, "area": 1.0, "iscrowd": crowd,
                "segmentation": []}  # fmt: skip

    sheet = {
        "images": [{"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480}],
        "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 17, "name": "cat"}],
        "annotations": [
            thing([64.0, 48.0, 128.0, 96.0]), thing([320.0, 240.0, 64.0, 48.0]), thing([0, 0, 64, 48], 17),
            thing([600, 0, 200, 40]), thing([10, 10, -5, 8]), thing([10, 10, float("nan"), 8]),
            thing([0, 0, 600, 400], crowd=1), thing([1, 1, 9, 9], category=99), thing([1, 1, 9, 9], image=8),
        ],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(sheet))
    paint("000000000009.jpg", 640, 480)
    assert found("coco", tmp_path / "instances.json") == [
        ("skipped", "box outside the image"), ("skipped", "box reversed"), ("skipped", "box not finite"),
        ("skipped", "box of a crowd"), ("skipped", "box without a name"),
        ("pics/000000000009.jpg", "dog", "<box>(100,100),(300,300)</box><box>(500,500),(600,600)</box>"),
        ("pics/000000000009.jpg", "cat", "<box>(0,0),(100,100)</box>"),
        ("skipped", "unknown image"),
    ]  # fmt: skip


def test_voc(tmp_path: Path) -> None:
    def thing(name: str, *corners: int) -> str:
        edges = "".join(
            f"<{edge}>{value}</{edge}>"
            for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        )
        return f"<object><name>{name}</name><difficult>0</difficult><bndbox>{edges}</bndbox></object>"

    size = "<size><width>500</width><height>250</height><depth>3</depth></size>"
    boxes = thing("dog", 51, 26, 100, 125) + thing("dog", 90, 20, 40, 30) + thing("person", 1, 1, 500, 250)
    annotations = tmp_path / "Annotations"
    annotations.mkdir()
    (annotations / "2007_000027.xml").write_text(
        f"<annotation><filename>2007_000027.jpg</filename>{size}{boxes}</annotation>"
    )
    (annotations / "2007_000032.xml").write_text("<annotation>")
    paint("2007_000027.png", 500, 250)
    assert found("voc", annotations) == [
        ("skipped", "box reversed"),
        ("pics/2007_000027.png", "dog", "<box>(100,100),(200,500)</box>"),
        ("pics/2007_000027.png", "person", "<box>(0,0),(999,999)</box>"),
        ("skipped", "broken annotation"),
    ]


def test_yolo(tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.txt").write_text(
        "1 0.5 0.5 0.2 0.4\n0 0.1 0.1 0.2 0.2 0.93\n1 0.1 0.2 0.3 0.2 0.3 0.6\n7 0.5 0.5 0.1 0.1\n1 0.5 0.5 x 1\n"
        "1 0.5 0.5 nan 0.1\n1 0.9 0.5 0.6 0.1\n1 0.1 0.2 0.3\n"
    )
    (tmp_path / "classes.txt").write_text("person\ndog\n")
    paint("a.jpg", 64, 48)
    assert found("yolo", labels, tmp_path / "classes.txt") == [
        ("skipped", "box without a name"), ("skipped", "box without four numbers"), ("skipped", "box not finite"),
        ("skipped", "box outside the image"), ("skipped", "box without four numbers"),
        ("pics/a.jpg", "dog", "<box>(400,300),(600,700)</box><box>(100,200),(300,600)</box>"),
        ("pics/a.jpg", "person", "<box>(0,0),(200,200)</box>"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"1 annotation files given; expected 2: the folder labels/"):
        found("yolo", labels)


def test_labelme(tmp_path: Path) -> None:
    def shape(kind: str, *points: tuple[float, float], label: str = "dog") -> dict[str, Any]:
        return {
            "label": label,
            "points": [list(p) for p in points],
            "group_id": None,
            "shape_type": kind,
            "flags": {},
        }

    sheet = {
        "version": "5.4.1", "flags": {}, "imagePath": "..\\photos\\a.png", "imageData": None, "imageHeight": 100,
        "imageWidth": 200,
        "shapes": [
            shape("rectangle", (100, 60), (20, 10)), shape("polygon", (20, 20), (40, 30), (30, 80)),
            shape("circle", (100, 50), (130, 90), label="ball"), shape("point", (5, 5)),
            shape("rectangle", (100, 60), (900, 10)), shape("polygon"),
        ],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(sheet))
    paint("a.png", 200, 100)
    assert found("labelme", tmp_path) == [
        ("skipped", "box empty"), ("skipped", "box outside the image"), ("skipped", "box without four numbers"),
        ("pics/a.png", "dog", "<box>(100,100),(500,600)</box><box>(100,200),(200,800)</box>"),
        ("pics/a.png", "ball", "<box>(250,0),(750,999)</box>"),
    ]  # fmt: skip


def test_files_in_another_form_are_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"annotations": [{}], "images": [], "categories": []}')
    assert found("coco", tmp_path / "a.json") == [("skipped", "no field 'image_id'")]
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(ValueError, match=r"b\.json has no field 'categories'"):
        found("coco", tmp_path / "b.json")
    with pytest.raises(ValueError, match=r"b\.json is a list, not an object; give the annotation file"):
        found("gqa", tmp_path / "b.json")
