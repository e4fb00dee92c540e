"""Annotation files in the form their authors published, written small: what becomes of every row."""

import io
import itertools
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as pillow

from qwenvl.data.boxes import Frame
from qwenvl.data.datasets.grit import Span, grounded, most_boxes, spans_of
from qwenvl.data.datasets.table import DATASETS
from qwenvl.data.datasets.vqav2 import most_confident
from qwenvl.data.parquet import write_parquet
from qwenvl.data.records import (
    Caption,
    GroundedCaption,
    OcrPage,
    Pair,
    Question,
    Record,
    Referring,
    Skipped,
)
from qwenvl.data.tars import write_tar
from qwenvl.markup import Box, Quad, Ref, Text, spell


def save(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are in `pics`, below the folder of the test."""
    monkeypatch.chdir(tmp_path)


def paint(*names: str, size: tuple[int, int] = (64, 48)) -> None:
    for name in names:
        path = Path("pics", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        pillow.new("RGB", size).save(path)


def read(name: str, *files: Path) -> list[Any]:
    return list(DATASETS[name].records(files, Path("pics")))


def short(record: Record | Pair | Skipped) -> tuple[str, ...]:
    if isinstance(record, Question):
        return (str(record.image.source), record.question, record.answer)
    if isinstance(record, Referring):
        return (str(record.image.source), record.phrase, *(spell([box]) for box in record.boxes))
    if isinstance(record, Skipped):
        return ("skipped", record.kind)
    if isinstance(record, Pair):
        return (record.text, record.url or "")
    assert isinstance(record, Caption | GroundedCaption)
    return (str(record.image.source), record.text if isinstance(record, Caption) else spell(record.caption))


# === Questions ===


def answers(*given: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"answer": a, "answer_confidence": c, "answer_id": k} for k, (a, c) in enumerate(given, 1)]


@pytest.mark.parametrize(
    ("given_answers", "chosen"),
    [
        ([("no", "maybe"), ("no", "maybe"), ("yes", "yes")], "yes"),
        ([("red", "yes"), ("blue", "yes"), ("blue", "yes"), ("red", "no")], "blue"),
        ([("red", "yes"), ("blue", "yes"), ("blue", "maybe")], "blue"),
        ([("red", "yes"), ("blue", "yes")], "red"),
        ([("red", "no"), ("", "yes")], "red"),
        ([], None),
    ],
)
def test_vqav2_takes_the_answer_of_maximum_confidence(given_answers: Any, chosen: str | None) -> None:
    assert most_confident(answers(*given_answers)) == chosen


def test_vqav2(tmp_path: Path) -> None:
    paint("COCO_train2014_000000458752.jpg", "COCO_train2014_000000000009.jpg")
    questions = save(
        tmp_path / "q.json",
        {
            "info": {},
            "data_subtype": "train2014",
            "questions": [
                {
                    "image_id": 458752,
                    "question": "What is this photo taken looking through?",
                    "question_id": 458752000,
                },
                {"image_id": 9, "question": "Unanswered?", "question_id": 1},
            ],
        },
    )
    annotations = save(
        tmp_path / "a.json",
        {
            "annotations": [
                {
                    "question_type": "what is this",
                    "multiple_choice_answer": "net",
                    "answers": answers(("net", "maybe"), ("netting", "yes")),
                    "image_id": 458752,
                    "answer_type": "other",
                    "question_id": 458752000,
                }
            ],
        },
    )
    assert [short(r) for r in read("vqav2", questions, annotations)] == [
        ("pics/COCO_train2014_000000458752.jpg", "What is this photo taken looking through?", "netting"),
        ("skipped", "no answer"),
    ]
    with pytest.raises(ValueError, match="1 annotation files given; expected 2"):
        read("vqav2", questions)


def test_gqa(tmp_path: Path) -> None:
    paint("2354786.jpg")
    row = {
        "imageId": "2354786",
        "question": "Is the sky dark?",
        "answer": "yes",
        "fullAnswer": "Yes, the sky is dark.",
    }
    assert [short(r) for r in read("gqa", save(tmp_path / "a.json", {"02930152": row}))] == [
        ("pics/2354786.jpg", "Is the sky dark?", "yes")
    ]


IMAGE_DATA = [
    {
        "image_id": 1,
        "width": 800,
        "height": 600,
        "url": "https://cs.stanford.edu/people/rak248/VG_100K_2/1.jpg",
    }
]


def test_vgqa(tmp_path: Path) -> None:
    paint("VG_100K_2/1.jpg")
    row = {
        "id": 1,
        "qas": [
            {
                "a_objects": [],
                "question": "What color is the clock?",
                "image_id": 1,
                "qa_id": 986768,
                "answer": "Green.",
                "q_objects": [],
            }
        ],
    }
    found = read("vgqa", save(tmp_path / "a.json", [row]), save(tmp_path / "i.json", IMAGE_DATA))
    assert [short(r) for r in found] == [("pics/VG_100K_2/1.jpg", "What color is the clock?", "Green.")]


def test_dvqa_and_chartqa(tmp_path: Path) -> None:
    paint("bar_train_00000001.png", "two_col_1.png")
    row = {
        "question": "How many bars are there?",
        "question_id": 1,
        "template_id": "structure",
        "answer": 4,
        "image": "bar_train_00000001.png",
        "answer_bbox": [],
    }
    assert [short(r) for r in read("dvqa", save(tmp_path / "a.json", [row]))] == [
        ("pics/bar_train_00000001.png", "How many bars are there?", "4")
    ]
    chart = {"imgname": "two_col_1.png", "query": "What is the share?", "label": "14.5"}
    assert [short(r) for r in read("chartqa", save(tmp_path / "b.json", [chart]))] == [
        ("pics/two_col_1.png", "What is the share?", "14.5")
    ]


def test_ocr_vqa_reads_the_training_split(tmp_path: Path) -> None:
    paint("761183272.jpg")
    book = {
        "imageURL": "http://images.com/P/0761183272.01._SCLZ.jpg",
        "questions": ["Who wrote this book?", "What is the genre?"],
        "answers": ["Sandra Boynton", "Humor"],
        "title": "t",
        "split": 1,
    }
    found = read("ocr-vqa", save(tmp_path / "dataset.json", {"761183272": book, "2": {**book, "split": 3}}))
    assert [short(r) for r in found] == [
        ("pics/761183272.jpg", "Who wrote this book?", "Sandra Boynton"),
        ("pics/761183272.jpg", "What is the genre?", "Humor"),
    ]


def test_docvqa_and_textvqa(tmp_path: Path) -> None:
    paint("documents/xnbl0037_1.png", "0054c91397f2fe05.jpg")
    row = {
        "questionId": 337,
        "question": "what is the date?",
        "image": "documents/xnbl0037_1.png",
        "docId": 279,
        "answers": ["1/8/93", "8 Jan"],
        "data_split": "train",
    }
    assert [short(r) for r in read("docvqa", save(tmp_path / "a.json", {"data": [row]}))] == [
        ("pics/documents/xnbl0037_1.png", "what is the date?", "1/8/93")
    ]
    text = {
        "question": "what brand?",
        "image_id": "0054c91397f2fe05",
        "answers": ["nous", "nokia", "nokia"],
        "question_id": 0,
    }
    assert [
        short(r)
        for r in read("textvqa", save(tmp_path / "b.json", {"data": [text, {**text, "answers": []}]}))
    ] == [
        ("pics/0054c91397f2fe05.jpg", "what brand?", "nokia"),
        ("skipped", "no answer"),
    ]


def test_ai2d(tmp_path: Path) -> None:
    paint("0.png")
    sheet = {
        "imageName": "0.png",
        "questions": {
            "What is A?": {
                "abcLabel": False,
                "answerTexts": ["root", "leaf", "stem"],
                "correctAnswer": 1,
                "questionId": "0.png-0",
            }
        },
    }
    save(tmp_path / "questions" / "0.png.json", sheet)
    assert [short(r) for r in read("ai2d", tmp_path / "questions")] == [("pics/0.png", "What is A?", "leaf")]


# === GRIT ===


def brute_force(spans: list[Span]) -> tuple[int, int]:
    """The most boxes, then the most characters, over all sets of spans of which none overlaps another."""
    best = (0, 0)
    for size in range(len(spans) + 1):
        for some in itertools.combinations(spans, size):
            ordered = sorted(some)
            if all(one.end <= other.start for one, other in itertools.pairwise(ordered)):
                best = max(best, value(some))
    return best


def value(spans: Any) -> tuple[int, int]:
    return sum(len(s.boxes) for s in spans), sum(s.end - s.start for s in spans)


@st.composite
def captions_with_spans(draw: Any) -> list[Span]:
    spans = []
    for _ in range(draw(st.integers(0, 8))):
        start = draw(st.integers(0, 18))
        end = draw(st.integers(start + 1, 20))
        spans.append(Span(start, end, (Box(1, 1, 2, 2),) * draw(st.integers(1, 3))))
    return spans


@given(captions_with_spans())
def test_the_sweep_is_as_good_as_trying_all_sets(spans: list[Span]) -> None:
    chosen = most_boxes(spans)
    assert value(chosen) == brute_force(spans)
    assert all(one.end <= other.start for one, other in itertools.pairwise(sorted(chosen)))


GRIT = {
    "key": "000000001",
    "clip_similarity_vitb32": 0.3,
    "url": "http://x/1.jpg",
    "width": 1000,
    "height": 500,
    "caption": "a wire hanger with a paper cover that reads we heart our customers",
    "noun_chunks": [
        [19, 32, 0.02, 0.04, 0.97, 0.97, 0.99],
        [0, 13, 0.02, 0.0, 0.97, 0.9, 0.93],
        [0, 13, 0.5, 0.1, 0.7, 0.9, 0.2],
    ],
    "ref_exps": [[19, 66, 0.02, 0.04, 0.97, 0.97, 0.99], [0, 66, 0.02, 0.0, 0.97, 0.9, 0.93]],
}


def test_grit(tmp_path: Path) -> None:
    paint("000000001.jpg", size=(1000, 500))
    found = read("grit-captions", save(tmp_path / "a.jsonl", json.dumps(GRIT)))
    assert [short(r) for r in found] == [
        (
            "pics/000000001.jpg",
            "<ref>a wire hanger</ref><box>(20,0),(970,900)</box> with"
            "<ref> a paper cover that reads we heart our customers</ref>"
            "<box>(20,40),(970,970)</box>",
        )
    ]
    assert isinstance(found[0], GroundedCaption)
    plain = "".join(s.text for s in found[0].caption if isinstance(s, Text | Ref))
    assert plain == GRIT["caption"], "without its tags it is the plain caption"
    phrases = read("grit-phrases", save(tmp_path / "a.jsonl", json.dumps(GRIT)))
    assert [r.phrase for r in phrases] == ["a wire hanger", "a paper cover that reads we heart our customers"]


def test_bad_boxes_of_grit_are_counted() -> None:
    bad = [
        [0, 5, 0.9, 0.1, 0.2, 0.9, 0.9],
        [0, 5, 0.1, 0.1, 1.2, 0.9, 0.9],
        [0, 5, 0.1, float("nan"), 0.2, 0.9, 0.9],
        [0, 500, 0.1, 0.1, 0.2, 0.9, 0.9],
        [0, 5, 0.1, 0.1, 0.2, 0.9, float("nan")],
        [0, 5, 0.1, 0.1, 0.1, 0.9, 0.9],
    ]
    row: dict[str, Any] = {**GRIT, "noun_chunks": bad, "ref_exps": None}
    spans, skipped = spans_of(row, row["caption"], Frame(1000, 500))
    assert spans == []
    assert [s.kind for s in skipped] == [
        "box reversed",
        "box outside the image",
        "box not finite",
        "phrase outside the caption",
        "score is not finite",
        "box empty",
    ]


def test_a_broken_row_of_grit_costs_no_other(tmp_path: Path) -> None:
    paint("000000001.jpg", size=(1000, 500))
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(GRIT)}\n{{broken\n{json.dumps(GRIT)}\n")
    for name in ("grit-captions", "grit-phrases"):
        kinds = [each.kind for each in read(name, tmp_path / "a.jsonl") if isinstance(each, Skipped)]
        assert kinds == ["broken JSON"]


def test_grit_from_parquet(tmp_path: Path) -> None:
    paint("000000001.jpg", size=(1000, 500))
    write_parquet(tmp_path / "a.parquet", [GRIT])
    (found,) = read("grit-captions", tmp_path / "a.parquet")
    assert isinstance(found, GroundedCaption)


@pytest.mark.parametrize("name", ["grit-captions", "grit-phrases"])
def test_f102_grit_as_img2dataset_leaves_it(tmp_path: Path, name: str) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    rows = [{**GRIT, "key": f"00000000{k}", "status": "success", "error_message": None} for k in range(3)]
    rows[2] |= {"status": "failed_to_download", "error_message": "404"}
    image = io.BytesIO()
    pillow.new("RGB", (1000, 500)).save(image, "JPEG")
    with write_tar(shards / "00000.tar") as tar:
        for row in rows[:2]:
            tar.add(f"{row['key']}.jpg", image.getvalue())
            tar.add(f"{row['key']}.json", json.dumps(row).encode())
    write_parquet(shards / "00000.parquet", rows)
    expected = 1 if name == "grit-captions" else 2
    for source in (shards, shards / "00000.tar"):
        found = read(name, source)
        assert [record.image.source for record in found] == [image.getvalue()] * 2 * expected
    lost = read(name, shards / "00000.parquet")
    assert [each.kind for each in lost] == ["missing image", "missing image", "failed download"]


# === Other grounding sets ===


def test_visual_genome(tmp_path: Path) -> None:
    paint("VG_100K_2/1.jpg", size=(800, 600))
    region = {
        "region_id": 1382,
        "width": 80,
        "height": 60,
        "image_id": 1,
        "phrase": "the clock is green",
        "y": 300,
        "x": 400,
    }
    bad = {**region, "x": 900}
    rows = [{"id": 1, "regions": [region, bad]}, {"id": 2, "regions": [{**region, "image_id": 2}]}]
    found = read("visual-genome", save(tmp_path / "r.json", rows), save(tmp_path / "i.json", IMAGE_DATA))
    assert [short(r) for r in found] == [
        ("pics/VG_100K_2/1.jpg", "the clock is green", "<box>(500,500),(600,600)</box>"),
        ("skipped", "box outside the image"),
        ("skipped", "unknown image"),
    ]


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_the_refcoco_family(tmp_path: Path, name: str) -> None:
    paint("COCO_train2014_000000581857.jpg", size=(640, 480))
    sentence = {
        "tokens": ["the", "lady"],
        "raw": "THE LADY",
        "sent_id": 0,
        "sent": "the lady with the blue shirt",
    }
    ref = {
        "sent_ids": [0, 1],
        "file_name": "COCO_train2014_000000581857_16.jpg",
        "ann_id": 1719310,
        "ref_id": 0,
        "image_id": 581857,
        "split": "train",
        "sentences": [sentence, {**sentence, "sent": "lady"}],
        "category_id": 1,
    }
    refs = tmp_path / "refs(unc).p"
    refs.write_bytes(pickle.dumps([ref, {**ref, "split": "testA"}], protocol=2))
    coco = {
        "images": [
            {"id": 581857, "width": 640, "height": 480, "file_name": "COCO_train2014_000000581857.jpg"}
        ],
        "annotations": [{"id": 1719310, "bbox": [320.0, 120.0, 64.0, 240.0], "image_id": 581857}],
    }
    found = read(name, refs, save(tmp_path / "instances.json", coco))
    box = "<box>(500,250),(600,750)</box>"
    assert [short(r) for r in found] == [
        ("pics/COCO_train2014_000000581857.jpg", phrase, box)
        for phrase in ("the lady with the blue shirt", "lady")
    ]


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch /tmp/owned",)

    (tmp_path / "refs.p").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"asks for posix\.system; annotations hold plain values"):
        read("refcoco", tmp_path / "refs.p", save(tmp_path / "i.json", {"images": [], "annotations": []}))


def test_flickr30k_entities(tmp_path: Path) -> None:
    paint("36979.jpg", size=(500, 250))
    xml = """<annotation><filename>36979.jpg</filename>
    <size><width>500</width><height>250</height><depth>3</depth></size>
    <object><name>1</name><name>2</name>
    <bndbox><xmin>51</xmin><ymin>26</ymin><xmax>100</xmax><ymax>125</ymax></bndbox></object>
    <object><name>4</name>
    <bndbox><xmin>90</xmin><ymin>26</ymin><xmax>60</xmax><ymax>125</ymax></bndbox></object>
    <object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"""
    save(tmp_path / "Annotations" / "36979.xml", xml)
    save(
        tmp_path / "Sentences" / "36979.txt",
        "[/EN#1/people A man] with [/EN#2/clothing a hat] on [/EN#3/scene the street] .",
    )
    found = read("flickr30k-entities", tmp_path / "Annotations", tmp_path / "Sentences")
    box = "<box>(100,100),(200,500)</box>"
    assert [short(r) for r in found] == [
        ("skipped", "box reversed"),
        ("pics/36979.jpg", f"<ref>A man</ref>{box} with<ref> a hat</ref>{box} on the street ."),
    ]


def test_a_phrase_at_the_start_and_after_a_bracket_has_no_space() -> None:
    box = Box(1, 2, 3, 4)
    shown = grounded("dogs (cats) run", [Span(0, 4, (box,)), Span(6, 10, (box, box))])
    assert spell(shown) == (
        "<ref>dogs</ref><box>(1,2),(3,4)</box> (<ref>cats</ref><box>(1,2),(3,4)</box><box>(1,2),(3,4)</box>) run"
    )


# === Captions and OCR ===


def test_lists_of_urls(tmp_path: Path) -> None:
    cc3m = save(
        tmp_path / "cc3m.tsv", 'a very typical bus "station"\thttp://l/1.jpg\nbroken line\n\thttp://l/2.jpg\n'
    )
    assert [short(r) for r in read("cc3m", cc3m)] == [
        ('a very typical bus "station"', "http://l/1.jpg"),
        ("skipped", "not two columns"),
        ("skipped", "empty caption"),
    ]
    cc12m = save(tmp_path / "cc12m.tsv", "http://l/1.jpg\t<PERSON> at home\n")
    assert [short(r) for r in read("cc12m", cc12m)] == [("<PERSON> at home", "http://l/1.jpg")]
    (tmp_path / "bad.tsv").write_bytes(b"caf\xff\thttp://x\nfine\thttp://y\n")
    assert [short(r) for r in read("cc3m", tmp_path / "bad.tsv")] == [
        ("skipped", "broken UTF-8"),
        ("fine", "http://y"),
    ]
    sbu = save(
        tmp_path / "sbu.json",
        {"image_urls": ["http://f/1.jpg"], "captions": ["The girl at the lake"], "user_ids": ["x"]},
    )
    urls, texts = (
        save(tmp_path / "u.txt", "http://f/1.jpg\n"),
        save(tmp_path / "c.txt", "The girl at the lake\n"),
    )
    assert read("sbu", sbu) == read("sbu", urls, texts)
    with pytest.raises(ValueError, match="1 URLs but 2 captions"):
        read("sbu", urls, save(tmp_path / "d.txt", "one\ntwo\n"))


def test_coco_captions(tmp_path: Path) -> None:
    paint("000000000009.jpg", size=(640, 480))
    sheet = {
        "images": [{"id": 9, "file_name": "000000000009.jpg", "width": 640, "height": 480}],
        "annotations": [
            {"image_id": 9, "id": 661611, "caption": "Closeup of bins of food. "},
            {"image_id": 8, "id": 1, "caption": "x"},
        ],
    }
    assert [short(r) for r in read("coco-caption", save(tmp_path / "a.json", sheet))] == [
        ("pics/000000000009.jpg", "Closeup of bins of food."),
        ("skipped", "unknown image"),
    ]


def test_web_pairs_and_clean_tars(tmp_path: Path) -> None:
    rows = [
        {
            "URL": "http://x/1.jpg",
            "TEXT": "a dog",
            "WIDTH": 640,
            "HEIGHT": 480,
            "similarity": 0.31,
            "LICENSE": "?",
            "NSFW": "UNLIKELY",
        }
    ]
    write_parquet(tmp_path / "laion.parquet", rows)
    (found,) = read("web", tmp_path / "laion.parquet")
    assert isinstance(found, Pair) and (found.source, found.clip_score) == ("laion", 0.31)


def test_icdar(tmp_path: Path) -> None:
    pillow.new("RGB", (1000, 2000)).save(tmp_path / "000.jpg")
    save(
        tmp_path / "000.csv",
        "72,25,326,25,326,64,72,64,TAN WOON, YANN\n1,2,3\n900,25,2000,25,2000,64,900,64,OUT\n",
    )
    found = list(DATASETS["icdar"].records([tmp_path], tmp_path))
    assert [s.kind for s in found if isinstance(s, Skipped)] == [
        "line without eight numbers and a text",
        "box outside the image",
    ]
    page = found[-1]
    assert isinstance(page, OcrPage)
    assert page.lines == (Quad(((72, 12), (326, 12), (326, 32), (72, 32)), label="TAN WOON, YANN"),)


def test_what_is_no_annotation_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not valid JSON"):
        read("gqa", save(tmp_path / "a.json", "{"))
    with pytest.raises(ValueError, match="has no field 'data'"):
        read("docvqa", save(tmp_path / "b.json", {}))
