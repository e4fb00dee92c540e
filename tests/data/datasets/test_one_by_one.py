"""Each entry is good or bad by itself and counted; a command of which nothing was usable fails and says why."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as pillow

from qwenvl import cli
from qwenvl.data.datasets.annotations import load_pickle, mended
from qwenvl.data.datasets.table import DATASETS, read
from qwenvl.data.datasets.yolo import class_names
from qwenvl.data.records import Question, Referring, Skipped


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pics").mkdir()
    pillow.new("RGB", (64, 48)).save("pics/a.jpg")


def save(name: str, value: Any, encoding: str = "utf-8") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding=encoding)
    return path


def found(name: str, *files: Path) -> list[str]:
    """The phrase or the question of every record, and why others are none."""
    shown = []
    for each in read(name, files, Path("pics")):
        assert isinstance(each, Referring | Question | Skipped)
        shown.append(
            f"- {each.kind}"
            if isinstance(each, Skipped)
            else each.phrase
            if isinstance(each, Referring)
            else each.question
        )
    return shown


def data_read(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    status = cli.main(["data", "read", *map(str, arguments), "--out", "out.jsonl"])
    return status, "".join(capsys.readouterr())


# === Nothing usable ===


def test_f5_annotations_without_their_images_are_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    sheet = {
        "images": [{"id": k, "file_name": f"{k}.jpg"} for k in range(3)],
        "annotations": [{"id": k, "image_id": k, "caption": "a dog"} for k in range(3)],
    }
    status, printed = data_read(capsys, "coco-caption", save("c.json", sheet), "--images", "nowhere")
    assert status == 2
    assert (
        "No entry could be used: 3 x missing image (the first: there is no nowhere/0.jpg); out.skipped.jsonl"
        in printed
    )
    assert "--images names the folder" in printed
    assert not Path("out.jsonl").exists()
    assert len(Path("out.skipped.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("icdar", ".csv"), ("voc", ".xml"), ("labelme", ".json"), ("ai2d", ".json"), ("clean", ".tar")],
)
def test_f5_a_folder_without_annotations_is_no_success(
    capsys: pytest.CaptureFixture[str], name: str, suffix: str
) -> None:
    Path("empty").mkdir()
    status, printed = data_read(capsys, name, "empty")
    assert status == 2 and f"empty holds no {suffix} file" in printed
    assert not Path("out.jsonl").exists()


def test_f5_files_without_an_entry_are_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = data_read(capsys, "gqa", save("q.json", {}))
    assert status == 2 and "hold no entry at all" in printed
    assert not Path("out.jsonl").exists()


def test_an_earlier_output_stays_when_nothing_is_usable(capsys: pytest.CaptureFixture[str]) -> None:
    save("out.jsonl", "earlier")
    assert data_read(capsys, "gqa", save("q.json", {"1": {"imageId": "none"}}))[0] == 2
    assert Path("out.jsonl").read_text() == "earlier"


JSON_SETS = [
    name for name, dataset in DATASETS.items() if ".json" in dataset.files and ".p " not in dataset.files
]


@pytest.mark.parametrize(
    "junk", ["[]", "{}", "5", '"x"', "null", "[5, null]", '{"1": 5}', '{"data": 5}', "{"]
)
@pytest.mark.parametrize("name", JSON_SETS)
def test_f73_whatever_a_file_holds_the_command_ends_in_a_sentence(
    capsys: pytest.CaptureFixture[str], name: str, junk: str
) -> None:
    files = [save("a.json" if "jsonl" not in DATASETS[name].files else "a.jsonl", junk)]
    files *= 2 if DATASETS[name].files.count(".json") == 2 and name != "chartqa" else 1
    status, printed = data_read(capsys, name, *files)
    assert status == 2 and "Traceback" not in printed and "qwenvl: error:" in printed


# === COCO ===


def test_f73_f106_entries_of_coco_one_by_one() -> None:
    def thing(number: int, **fields: Any) -> dict[str, Any]:
        whole = {"id": number, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9 + number], **fields}
        return {key: value for key, value in whole.items() if value is not ...}

    sheet = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": None, "height": None},
            {"id": 1, "file_name": "b.jpg"}, {"file_name": "c.jpg"}, None, {"id": 2, "file_name": "none.jpg"},
            {"id": "3", "file_name": "a.jpg", "width": "64", "height": "48"}, {"id": 4, "file_name": "a.jpg"},
            {"id": 5},
        ],
        "categories": [{"id": "1", "name": "cat"}, {"id": 2}, 7, {"id": 3, "name": "dog"}],
        "annotations": [
            thing(1), thing(2, bbox=...), thing(3, bbox=[]), thing(4, bbox=None), thing(5, bbox=[1, 2, "x", 4]),
            thing(6, bbox="1234"), thing(7, image_id="1"), thing(8, image_id=1.0), thing(9, category_id="3"),
            thing(10, category_id=2), thing(11, category_id=None), thing(12, image_id=...), None,
            thing(13, image_id=2), thing(14, image_id=3, category_id=3.0), thing(15, image_id=99),
            thing(16, bbox=[1e400, 1, 2, 3]), thing(17, bbox=[[1], 1, 2, 3]), thing(18, image_id=5),
            thing(19, image_id=[1]),
        ],
    }  # fmt: skip
    assert found("coco", save("coco.json", sheet, "utf-8-sig")) == [
        "- image id twice", "- no field 'id'", "- no field 'id'", "- no field 'image_id'", "- no field 'image_id'",
        "- no image id",
        *["- box without four numbers"] * 5, *["- box without a name"] * 2, "- box not finite",
        "- box without four numbers", "cat", "dog", "- missing image", "dog", "- no box", "- no field 'file_name'",
        "- unknown image",
    ]  # fmt: skip


def test_f73_captions_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    sheet = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "none.jpg"}],
        "annotations": [
            {"image_id": "1", "caption": "a dog"}, {"image_id": 1, "caption": " "}, {"image_id": 1},
            {"image_id": 1, "caption": None}, {"image_id": 2, "caption": "x"}, [], {"image_id": 3, "caption": "x"},
        ],
    }  # fmt: skip
    status, printed = data_read(capsys, "coco-caption", save("c.json", sheet), "--images", "pics")
    counts = {line.strip().partition("  ")[2]: int(line.split()[0]) for line in printed.splitlines()}
    assert status == 0 and counts == {
        "caption": 1, "skipped: empty caption": 1,
        "skipped: caption is no text": 1, "skipped: missing image": 1, "skipped: unknown image": 1,
        "skipped: no field 'caption'": 2,
    }  # fmt: skip


# === LabelMe, VOC ===


def test_f73_labelme_files_one_by_one() -> None:
    def sheet(**fields: Any) -> dict[str, Any]:
        shape = {"label": "dog", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}
        return {"imagePath": "a.jpg", "imageWidth": 64, "imageHeight": 48, "shapes": [shape], **fields}

    points = [[1, 1], [9, 9]]
    sheets: list[Any] = [
        sheet(), sheet(imageWidth=None), sheet(imageHeight=0), sheet(imageWidth="64"), sheet(imageWidth=[1]),
        sheet(shapes=[{"label": 3, "points": points}]), sheet(shapes=[{"label": None, "points": points}]),
        sheet(shapes=[{"label": "x"}]), sheet(shapes=[5]), sheet(shapes=None), sheet(shapes=[]),
        sheet(imagePath="none.jpg"), sheet(imagePath=None), [], "{broken",
    ]  # fmt: skip
    for number, each in enumerate(sheets):
        save(f"labels/{number:02d}.json", each)
    save("labels/15.json", sheet(), "utf-16")
    assert found("labelme", Path("labels")) == [
        *["dog"] * 5, "3", "- box without a name", "- box without four numbers", "- box without four numbers",
        "- broken annotation", "- no box", "- missing image", "- missing image", "- no field 'shapes'",
        "- broken annotation", "- broken annotation",
    ]  # fmt: skip


def voc(
    name: str = "dog",
    size: str = "<width>64</width><height>48</height>",
    xmax: str = "30",
    file: str = "a.jpg",
) -> str:
    edges = f"<xmin>1</xmin><ymin>1</ymin><xmax>{xmax}</xmax><ymax>30</ymax>"
    return (
        f"<annotation><filename>{file}</filename><size>{size}</size>"
        f"<object><name>{name}</name><bndbox>{edges}</bndbox></object></annotation>"
    )


@pytest.mark.parametrize(
    ("xml", "encoding", "outcome"),
    [
        (voc(), "utf-8-sig", "dog"),
        (voc("猫"), "utf-16", "猫"),
        ('<?xml version="1.0" encoding="gb2312"?>' + voc("猫"), "gb2312", "猫"),
        ('<?xml version="1.0" encoding="Shift_JIS" standalone="yes"?>\n' + voc("猫"), "shift_jis", "猫"),
        ("<?xml version='1.0' encoding='windows-1252'?>" + voc("café"), "cp1252", "café"),
        ('<?xml version="1.0" encoding="utf-8"?>' + voc("café"), "cp1252", "- broken annotation"),
        ('<?xml version="1.0" encoding="undefined"?>' + voc(), "utf-8", "- broken annotation"),
        ('<?xml version="1.0" encoding="base64"?>' + voc(), "utf-8", "- broken annotation"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]>' + voc("&a;"), "utf-8", "- broken annotation"),
        (voc(size="<width>0</width><height>0</height>"), "utf-8", "dog"),
        (voc(size=""), "utf-8", "dog"),
        (voc(size="<width>inf</width><height>48</height>"), "utf-8", "dog"),
        (voc(xmax="inf"), "utf-8", "- box not finite"),
        (voc(xmax="nan"), "utf-8", "- box not finite"),
        (voc(xmax="1e999"), "utf-8", "- box not finite"),
        (voc(xmax="x"), "utf-8", "- box without four numbers"),
        (voc(name=" "), "utf-8", "- box without a name"),
        ("<annotation><filename>a.jpg</filename></annotation>", "utf-8", "- no box"),
        ("<html></html>", "utf-8", "- broken annotation"),
        ("", "utf-8", "- broken annotation"),
    ],
)  # fmt: skip
def test_f73_f97_voc_files_one_by_one(xml: str, encoding: str, outcome: str) -> None:
    save("labels/a.xml", xml, encoding)
    assert found("voc", Path("labels")) == [outcome]


@pytest.mark.parametrize("named", ["a.jpg", "..\\pics\\A.jpg", "/home/me/a.png", None, "", 5, "none.jpg"])
def test_f68_the_image_of_a_labelme_file_is_found(named: Any) -> None:
    shapes = [{"label": "dog", "points": [[1, 1], [9, 9]]}]
    (record,) = read("labelme", [save("a.json", {"imagePath": named, "shapes": shapes})], Path("pics"))
    assert isinstance(record, Referring) and record.image.source == "pics/a.jpg"


@pytest.mark.parametrize(
    ("xml", "named", "there"),
    [
        ("b", "a.jpg", "a.jpg"),
        ("b", "A.JPG", "a.jpg"),
        ("b", "D:\\\\data\\\\a.jpg", "a.jpg"),
        ("b", "a", "a.jpg"),
        ("b", "a.png", "a.jpg"),
        ("IMG_2", "other.jpg", "IMG_2.JPG"),
        ("IMG_3", "", "IMG_3.jfif"),
    ],
)
def test_f68_the_image_of_a_voc_file_is_found(xml: str, named: str, there: str) -> None:
    pillow.new("RGB", (64, 48)).save(Path("pics") / there, "JPEG")
    (record,) = read("voc", [save(f"{xml}.xml", voc(file=named))], Path("pics"))
    assert isinstance(record, Referring) and record.image.source == f"pics/{there}"


# === YOLO ===

CATS = ["cat", "big dog"]


@pytest.mark.parametrize(
    "text",
    [
        "train: x\nval: y\nnc: 2\nnames: ['cat', 'big dog']\n",
        "names:\n- cat\n- big dog\nnc: 2\n",
        "names:\n  - cat   # small\n\n  # none\n  - 'big dog'\nroboflow:\n  project: x\n",
        "path: ../data\nnames:\n  0: cat\n  1: big dog\n",
        'names:\n  1: "big dog"\n  0: cat',
        "names: {0: cat, 1: 'big dog'}\n",
        'names: ["cat",\n        "big dog"]  # two\nnc: 2\n',
        "\ufeffnames: [cat, big dog]\r\nnc: 2\r\n",
        '"names": [cat, "big dog"]',
        "names: [\n  cat,\n  big dog,\n]\n",
    ],
)
def test_f68_names_of_a_data_yaml(text: str) -> None:
    assert class_names(save("data.yaml", text)) == CATS


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            "names: ['it''s', \"a, b\", 'c # d', \"caf\\u00e9\", e-f, 7]",
            ["it's", "a, b", "c # d", "café", "e-f", "7"],
        ),
        ("names:\n  0: person: tall\n  2: car\n", ["person: tall", "", "car"]),
        ("names:\n- cat#1\n- a:b\n", ["cat#1", "a:b"]),
    ],
)
def test_f68_odd_names_of_a_data_yaml(text: str, names: list[str]) -> None:
    assert class_names(save("data.yml", text)) == names


@pytest.mark.parametrize(
    "text",
    ["train: x\n", "names: 3\n", "names: [cat\n", "names: *other\n", "names:\n  cat: 0\n", "names:\n- {a: b}\n",
     "names:\n  0: cat\n  0: dog\n", "names: []\n", "names:\n", "names:\n  999999999: cat\n", 'names: ["\\q"]'],
)  # fmt: skip
def test_f68_a_data_yaml_without_names_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"data\.yaml .*(names|class)"):
        class_names(save("data.yaml", text))


def test_f68_a_mark_at_the_start_is_no_part_of_a_class_and_empty_lines_count() -> None:
    assert class_names(save("classes.txt", "cat\r\n\r\ndog \r\n", "utf-8-sig")) == ["cat", "", "dog"]


def test_f68_f106_yolo_files_one_by_one() -> None:
    save("classes.txt", "cat\ndog\n", "utf-8-sig")
    save(
        "labels/a.txt",
        "0 0.5 0.5 0.2 0.2\n1.0 0.2 0.2 0.1 0.1\n1.5 0.2 0.2 0.1 0.1\n-1 .2 .2 .1 .1\n",
        "utf-8-sig",
    )
    save("labels/b.txt", "0 0.5 0.5 0.2 0.2\n")
    save("labels/c.txt", "\n")
    save("labels/train/d.txt", "0 0.5 0.5 0.2 0.2\n")
    Path("pics/train").mkdir()
    pillow.new("RGB", (64, 48)).save("pics/train/d.JPG", "JPEG")
    save("labels/classes.txt", "not labels")
    save("all/val/labels/e.txt", "0 0.5 0.5 0.2 0.2\n")
    Path("pics/val/images").mkdir(parents=True)
    pillow.new("RGB", (64, 48)).save("pics/val/images/e.png")
    assert found("yolo", Path("all"), Path("classes.txt")) == ["cat"]
    assert found("yolo", Path("labels"), Path("classes.txt")) == [
        "- box without four numbers", "- box without a name", "cat", "dog", "- missing image", "- no box", "cat",
    ]  # fmt: skip


# === Pickles, tables, lists ===


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"\x80\x02", b"\x80\x02]q\x00(", pickle.dumps([{"a": 1}])[:-5],
     b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
     b"I99999999999999999999999999999999999x\n.", b"0.", b"c\n\n.", b"\x1f\x8b\x08\x00",
     b"(lp0\nS'unfinished", b"Vx\\ud800\n."],
)  # fmt: skip
def test_f97_damaged_pickles_end_in_a_sentence(content: bytes) -> None:
    Path("refs.p").write_bytes(content)
    instances = save("i.json", {"images": [], "annotations": []})
    with pytest.raises(ValueError, match=r"refs\.p|asks for"):
        list(read("refcoco", [Path("refs.p"), instances], Path("pics")))
    from qwenvl.data.datasets.sample import Source
    from qwenvl.evaluation.benchmarks import benchmark

    with pytest.raises(ValueError, match=r"refs\.p|asks for"):
        benchmark("refcoco-val").read(Source(Path("refs.p"), instances))


def test_f106_byte_strings_of_old_pickles_are_read_alike_everywhere() -> None:
    old = b"(lp0\n(dp1\nS'sent'\np2\nS'%s'\np3\nsa."
    for raw in ("café 猫".encode(), "café".encode("latin-1")):
        Path("refs.p").write_bytes(old % raw.decode("latin-1").encode("unicode_escape"))
        (entry,) = load_pickle(Path("refs.p"))
        assert mended(entry["sent"]) == raw.decode("utf-8" if b"\xc3" in raw else "latin-1")


def test_f73_references_one_by_one() -> None:
    def ref(number: int, **fields: Any) -> dict[str, Any]:
        sentence = {"sent": f"thing {number}", "sent_id": number}
        return {
            "ref_id": number,
            "image_id": 1,
            "ann_id": 7,
            "split": "train",
            "sentences": [sentence],
            **fields,
        }

    refs = [
        ref(0), ref(1, image_id="1", ann_id=7.0), ref(2, image_id=2), ref(3, ann_id=8), ref(4, sentences=None),
        ref(5, sentences=[{"sent": " "}]), None, ref(6, split="val"), ref(7, ann_id=9), {"split": "train"},
    ]  # fmt: skip
    Path("refs.p").write_bytes(pickle.dumps(refs, protocol=2))
    sheet = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": None, "height": 48}, None],
        "annotations": [{"id": 7, "bbox": [1, 1, 9, 9]}, {"id": 8}, {"id": 9, "bbox": [20, 1, -9, 9]}, 5],
    }
    assert found("refcoco", Path("refs.p"), save("i.json", sheet)) == [
        "thing 0", "thing 1", "- unknown image", "- unknown image", "- broken entry", "- no phrase",
        "- no field 'image_id'", "- box reversed", "- no field 'image_id'",
    ]  # fmt: skip


def test_f73_the_first_row_of_a_file_with_a_mark() -> None:
    save(
        "cc3m.tsv",
        "a dog\thttp://x/1.jpg\n\thttp://x/2.jpg\na cat\t \nx\u2028y\thttp://x/3.jpg\n",
        "utf-8-sig",
    )
    pairs = list(read("cc3m", [Path("cc3m.tsv")], Path()))
    assert [getattr(each, "text", None) or getattr(each, "kind", "") for each in pairs] == [
        "a dog", "empty caption", "no URL", "x\u2028y",
    ]  # fmt: skip


def test_f73_questions_one_by_one() -> None:
    rows: Any = {
        "1": {"imageId": "a", "question": "What?", "answer": "x"}, "2": {"imageId": "a", "question": "No answer?"},
        "3": {"imageId": "none", "question": "?", "answer": "x"}, "4": {"question": "?"}, "5": None,
        "6": {"imageId": "a", "question": None, "answer": "x"},
        "7": {"imageId": "a", "question": "Seven?", "answer": 7},
        "8": {"imageId": "a", "question": "?", "answer": {"a": 1}},
        "9": {"imageId": "../a", "question": "?", "answer": "x"},
        "10": {"imageId": "a", "question": "?", "answer": math.nan},
        "11": {"imageId": "a", "question": math.inf, "answer": "x"},
    }  # fmt: skip
    assert found("gqa", save("q.json", rows)) == [
        "What?", "- no answer", "- missing image", "- no field 'imageId'", "- no field 'imageId'",
        "- question is no text", "Seven?", "- answer is no text", "- image outside its folder",
        "- answer is no text", "- question is no text",
    ]  # fmt: skip


def test_f73_answers_of_vqav2_one_by_one() -> None:
    pillow.new("RGB", (64, 48)).save("pics/COCO_train2014_000000000001.jpg")
    asked: list[Any] = [{"image_id": 1, "question": f"{k}?", "question_id": k} for k in range(5)]
    asked += [
        None,
        {"image_id": "x", "question": "?", "question_id": 9},
        {"image_id": 10**15, "question_id": 8},
    ]
    said = [{"answer": "yes", "answer_confidence": "yes"}]
    answers: list[Any] = [
        {"question_id": 0, "answers": said}, {"answers": said}, None, {"question_id": "1", "answers": said},
        {"question_id": 2, "answers": None}, {"question_id": 3, "answers": [5]}, {"question_id": 9, "answers": said},
    ]  # fmt: skip
    files = save("q.json", {"questions": asked}), save("a.json", {"annotations": answers})
    assert found("vqav2", *files) == [
        "- no field 'question_id'", "- no field 'question_id'", "0?", "1?", "- broken entry", "- broken entry",
        "- no answer", "- no field 'image_id'", "- broken entry", "- no answer",
    ]  # fmt: skip
