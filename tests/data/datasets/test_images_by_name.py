"""Images are found by the names that annotations give them, below their folder, and seen as their author saw them."""

import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as pillow
from PIL import ImageDraw, ImageOps

from qwenvl.data.datasets.annotations import BadEntry
from qwenvl.data.datasets.images import ImageFolder, frame_of
from qwenvl.data.datasets.sample import Source
from qwenvl.data.datasets.table import read
from qwenvl.data.records import Referring, Skipped
from qwenvl.images import open_image


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pics").mkdir()


def paint(name: str, width: int = 40, height: int = 30, orientation: int = 1) -> Path:
    """White, with a red rectangle of x 30 to 38 and y 2 to 8 fortieths and thirtieths as stored."""
    path = Path("pics", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pillow.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).rectangle(
        (30 * width // 40, 2 * height // 30, 38 * width // 40, 8 * height // 30), "red"
    )
    exif = pillow.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif) if orientation != 1 else image.save(path)
    return path


def coco(name: Any, width: Any = 40, height: Any = 30, bbox: Any = (4, 3, 8, 6)) -> Path:
    sheet = {
        "images": [{"id": 1, "file_name": name, "width": width, "height": height}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": bbox}],
    }
    path = Path("instances.json")
    path.write_text(json.dumps(sheet))
    return path


def outcome(name: str, *files: Path) -> str:
    """Path of the one record, or why there is none."""
    (found,) = read(name, files, Path("pics"))
    assert isinstance(found, Referring | Skipped)
    return found.kind if isinstance(found, Skipped) else str(found.image.source)


@pytest.mark.parametrize(
    ("stored", "named"),
    [
        ("one.jpg", ".\\one.jpg"),
        ("sub/one.jpg", "sub\\one.jpg"),
        ("one.jpg", "pics\\one.jpg"),
        ("one.jpg", "pics/one.jpg"),
        ("one.jpg", r"C:\data\train\one.jpg"),
        ("train/one.jpg", r"d:\data\train\one.jpg"),
        ("one.jpg", r"\\server\share\one.jpg"),
        ("One.JPG", "one.jpg"),
        ("Sub/one.jpg", "sub/ONE.jpg"),
        ("a b.jpg", "a%20b.jpg"),
        ("a%20b.jpg", "a b.jpg"),
        (unicodedata.normalize("NFD", "Füße.jpg"), unicodedata.normalize("NFC", "Füße.jpg")),
        (unicodedata.normalize("NFC", "été/é.jpg"), unicodedata.normalize("NFD", "été/é.jpg")),
    ],
)
def test_f106_f107_a_name_written_otherwise_finds_its_image(stored: str, named: str) -> None:
    paint(stored)
    assert outcome("coco", coco(named)) == f"pics/{stored}"


def test_f107_a_name_that_fits_several_files_fits_none() -> None:
    paint("One.jpg"), paint("oNe.jpg")
    assert outcome("coco", coco("one.jpg")) == "ambiguous image name"
    assert outcome("coco", coco("One.jpg")) == "pics/One.jpg"


def test_f106_two_images_of_another_machine_are_never_one_file_here() -> None:
    paint("1.jpg")
    folder = ImageFolder(Path("pics"))
    assert folder.find(r"C:\cats\1.jpg") == folder.find(r"C:\cats\1.jpg") == Path("pics/1.jpg")
    with pytest.raises(BadEntry, match=r"are both pics/1\.jpg here") as caught:
        folder.find(r"C:\dogs\1.jpg")
    assert caught.value.kind == "ambiguous image name"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "..\\secret.jpg", "link.jpg", "a/../../x.jpg"]
)
def test_f81_a_name_that_leads_out_of_the_folder_is_refused_and_counted(name: str) -> None:
    paint("one.jpg").rename("secret.jpg")
    os.symlink(Path("secret.jpg").resolve(), "pics/link.jpg")
    assert outcome("coco", coco(name)) == "image outside its folder"
    questions = Path("questions.json")
    questions.write_text(
        json.dumps({"data": [{"questionId": 1, "image": name, "question": "?", "answers": ["x"]}]})
    )
    (lost,) = read("docvqa", [questions], Path("pics"))
    assert isinstance(lost, Skipped) and lost.kind == "image outside its folder"
    from qwenvl.evaluation.benchmarks import benchmark

    with pytest.raises(ValueError, match=r"leads out of|is absolute"):
        benchmark("docvqa").read(Source(questions, images=Path("pics")))


def test_f81_an_absolute_name_below_the_folder_is_taken() -> None:
    assert outcome("coco", coco(str(paint("one.jpg").resolve()))) == "pics/one.jpg"


@pytest.mark.parametrize(
    ("name", "kind"), [(None, "no text"), (5, "5.jpg"), ("", "no image name"), ("a\0b", "unusable")]
)
def test_f73_a_name_that_is_none_costs_its_own_entry(name: Any, kind: str) -> None:
    assert kind in outcome("coco", coco(name)) or outcome("coco", coco(name)) == "missing image"


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_f66_boxes_of_the_turned_image_are_turned_to_the_stored_one(orientation: int) -> None:
    path = paint("phone.jpg", 400, 300, orientation)
    shown = ImageOps.exif_transpose(pillow.open(path)).convert("RGB")
    red = (
        shown.point(lambda level: 255 if level > 128 else 0).getchannel("G").point(lambda level: 255 - level)
    )
    left, top, right, bottom = red.getbbox() or (0, 0, 0, 0)
    bbox = (left, top, right - left, bottom - top)
    labels = {
        "imagePath": "phone.jpg", "imageWidth": shown.width, "imageHeight": shown.height,
        "shapes": [{"label": "thing", "points": [[left, top], [right, bottom]], "shape_type": "rectangle"}],
    }  # fmt: skip
    Path("phone.json").write_text(json.dumps(labels))
    Path("phone.xml").write_text(
        f"<annotation><filename>phone.jpg</filename><size><width>{shown.width}</width><height>{shown.height}</height>"
        f"</size><object><name>thing</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax>"
        f"<ymax>{bottom}</ymax></bndbox></object></annotation>"
    )
    for name, file in (
        ("coco", coco("phone.jpg", shown.width, shown.height, bbox)),
        ("labelme", Path("phone.json")),
        ("voc", Path("phone.xml")),
    ):
        (found,) = read(name, [file], Path("pics"))
        assert isinstance(found, Referring)
        (box,) = found.boxes
        assert (box.x1, box.y1, box.x2, box.y2) == pytest.approx((750, 66, 952, 270), abs=6), name
        left, top, right, bottom = map(int, box.to_pixels(400, 300))
        seen = open_image(path).crop((left, top, right, bottom))
        assert seen.resize((1, 1)).getpixel((0, 0))[1] < 60, "the box is on the red rectangle"  # type: ignore[index]


@pytest.mark.parametrize(
    ("orientation", "stored", "said", "kind"),
    [
        (6, (400, 300), (400, 300), None),
        (6, (400, 300), (800, 600), None),
        (6, (400, 300), (600, 800), 6),
        (1, (400, 300), (200, 150), None),
        (1, (400, 300), (300, 400), "image on its side"),
        (1, (400, 300), (300, 300), "image of another size"),
        (6, (400, 300), (500, 500), "image of another size"),
        (3, (400, 300), (400, 300), "image turned by EXIF"),
        (2, (400, 300), (400, 300), "image turned by EXIF"),
        (6, (300, 300), (300, 300), "image turned by EXIF"),
        (8, (400, 300), None, "image turned by EXIF"),
        (1, (400, 300), None, None),
    ],
)
def test_f66_sizes_tell_how_boxes_were_drawn_or_nothing_does(
    orientation: int, stored: tuple[int, int], said: tuple[int, int] | None, kind: Any
) -> None:
    path = paint("phone.jpg", *stored, orientation)
    if isinstance(kind, str):
        with pytest.raises(BadEntry) as caught:
            frame_of(path, said)
        assert caught.value.kind == kind
    else:
        assert frame_of(path, said) == (*(said or stored), kind or 1)


def test_f66_a_label_file_without_a_size_says_nothing_of_a_turned_image() -> None:
    paint("phone.jpg", 400, 300, 6)
    Path("labels").mkdir()
    Path("labels/phone.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    Path("classes.txt").write_text("cat\n")
    assert outcome("yolo", Path("labels"), Path("classes.txt")) == "image turned by EXIF"
    Path("phone.csv").write_text("1,1,9,1,9,9,1,9,text\n")
    (lost,) = read("icdar", [Path("phone.csv")], Path("pics"))
    assert isinstance(lost, Skipped) and lost.kind == "image turned by EXIF"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        (b"\xff\xd8\xff", "truncated image"),
    ],
)
def test_f80_what_is_no_image_is_counted(content: bytes, kind: str) -> None:
    Path("pics/one.jpg").write_bytes(content)
    assert outcome("coco", coco("one.jpg")) == kind


def test_f87_a_pipe_under_the_name_of_an_image_is_not_waited_for() -> None:
    os.mkfifo("pics/one.jpg")
    assert outcome("coco", coco("one.jpg")) == "unusable image name"


def test_f107_evaluation_finds_images_by_the_same_rule(tmp_path: Path) -> None:
    paint("été.JPG")
    source = Source(tmp_path / "x.json", images=Path("pics"))
    assert source.image(unicodedata.normalize("NFD", "ÉTÉ.jpg")) == "pics/été.JPG"
    assert source.image("none.jpg") == "pics/none.jpg"


def test_f107_whoever_opens_a_path_is_told_what_looks_like_it() -> None:
    paint("été.jpg")
    with pytest.raises(
        ValueError, match=r"No image at .*; '\\xe9t\\xe9\.jpg' is there, which is written otherwise"
    ):
        open_image(unicodedata.normalize("NFD", "pics/été.jpg"))
